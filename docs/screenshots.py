"""Makes the dashboard's pictures for the README: a real service, the digits job, a headless Chromium.

    .venv/bin/python docs/screenshots.py

Takes as long as the digits job does, a minute or two on an idle machine, and writes
``docs/images/dashboard-{jobs,running,finished}-{light,dark}.png``.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from shared.jobs import JobRecord, State
from shared.storage import Storage
from synth_service.cli.job_file import load_job_file
from synth_service.client import Client
from synth_service.digits_example import example_folder, put_inputs
from synth_service.local.redis import LOOPBACK
from synth_service.local.service import LocalService, StopSignals

IMAGES: Final = Path(__file__).parent / "images"
APPEARANCES: Final = ("light", "dark")
WIDTH: Final = 1200
SCALE: Final = 1.5
"""Device pixels for each CSS pixel: sharp where the README shows the pictures smaller than they are."""

COLORS: Final = 128
RUNNING_PERCENT: Final = 60.0
WAIT_SECONDS: Final = 1800.0


def main() -> int:
    """Starts everything, takes the pictures, stops everything."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("there is no Chromium here: apt-get install chromium", file=sys.stderr)
        return 1
    example = example_folder()
    assert example is not None
    spec = load_job_file(str(example / "job.yaml"), [])
    with StopSignals() as signals, tempfile.TemporaryDirectory(prefix="dfkd-screenshots-") as folder:
        storage = Storage(f"{folder}/storage")
        put_inputs(spec, example, storage)
        storage.put_bytes(b"no weights", "teachers/of-another-format.bin")
        service = LocalService(
            storage=storage.root,
            redis_url=None,
            redis_folder=Path(folder) / "redis",
            host=LOOPBACK,
            port=0,
            synth_workers=1,
            distillers=1,
            signals=signals,
            on_output=lambda _name, _line: None,
            on_event=print,
        )
        with service, sync_playwright() as playwright:
            service.wait_until_ready()
            sandbox = [] if os.geteuid() else ["--no-sandbox"]
            browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
            with Client(service.url) as client:
                take_pictures(browser, client, service.url, spec)
            browser.close()
    return 0


def take_pictures(browser: Browser, client: Client, url: str, spec: dict[str, Any]) -> None:
    """Submits jobs in several states, and looks at the digits job while it runs and when it is done."""
    for job in earlier_jobs(spec):
        wait(client, client.jobs.create(job), lambda record: record.state.is_final)
    digits = client.jobs.create(spec)
    waiting = client.jobs.create(spec | {"name": "digits, another seed", "seed": 1})
    client.jobs.cancel(client.jobs.create(spec | {"name": "digits, by mistake"}).id)

    wait(client, digits, is_well_under_way)
    for appearance in APPEARANCES:
        take(browser, f"{url}/ui/", f"dashboard-jobs-{appearance}", appearance, height=620)
        take(browser, f"{url}/ui/jobs/{digits.id}", f"dashboard-running-{appearance}", appearance, height=1500)
    client.jobs.cancel(waiting.id)
    record = wait(client, digits, lambda record: record.state.is_final)
    assert record.state is State.SUCCEEDED, record.error
    for appearance in APPEARANCES:
        take(browser, f"{url}/ui/jobs/{digits.id}", f"dashboard-finished-{appearance}", appearance, height=1500)


def earlier_jobs(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Jobs of seconds that have ended before: one of each kind of end."""
    small = {"num_images": 640, "batch_size": 64}
    quick = spec | {
        "name": "digits, fast-2",
        "synthesis": spec["synthesis"] | small | {"preset": "fast-2"},
        "distillation": spec["distillation"] | {"steps": 120},
    }
    dataset = {
        **{name: part for name, part in quick.items() if name not in ("student", "evaluation")},
        "name": "digits, dataset only",
        "distillation": None,
    }
    broken = quick | {
        "name": "teacher from elsewhere",
        "teacher": spec["teacher"] | {"checkpoint": "teachers/of-another-format.bin"},
    }
    return [quick, dataset, broken]


def is_well_under_way(record: JobRecord) -> bool:
    """Whether both halves of the job are at it, and there is something to see of each."""
    synthesis = record.stages.synthesis
    return synthesis is not None and synthesis.progress.percent >= RUNNING_PERCENT and record.measurement is not None


def wait(client: Client, job: JobRecord, condition: Any) -> JobRecord:
    """Polls a job until the condition holds for it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(record := client.jobs.get(job.id)):
        if record.state.is_final or time.monotonic() > deadline:
            raise SystemExit(f"{record.id} is {record.state}: {record.error}")
        time.sleep(0.2)
    return record


def take(browser: Browser, address: str, name: str, appearance: Any, *, height: int) -> None:
    """One picture, as small as it can be without being seen."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": height},
        device_scale_factor=SCALE,
        color_scheme=appearance,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    page = context.new_page()
    page.goto(address)
    settle(page)
    drawn = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    path = IMAGES / f"{name}.png"
    drawn.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def settle(page: Page) -> None:
    """Waits until what the page fetches by itself is there."""
    if "/ui/jobs/" in page.url:
        expect(page.locator("#picture")).to_be_visible()
        expect(page.locator(".chart-legend").first).to_be_visible()
        expect(page.locator("#log-list li").first).to_be_visible()
    page.wait_for_timeout(500)  # fonts and the last frame of charts


if __name__ == "__main__":
    sys.exit(main())
