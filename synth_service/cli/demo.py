"""`dfkd demo`: the digits example through the whole service, from an empty folder to a measured student.

Everything is what a user would do: the service is started as `dfkd up` starts it, the job goes in over
HTTP, and every number that is shown comes back in the job's record.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from shared.jobs import JobRecord, State
from shared.storage import Storage
from synth_service.cli.job_file import load_job_file
from synth_service.cli.outcomes import ExitCode, connected, fail, messages, output, print_json
from synth_service.cli.running import report
from synth_service.client import Client
from synth_service.client.progress import display_for
from synth_service.local.redis import LOOPBACK
from synth_service.local.service import CannotStart, Interrupted, LocalService, StopSignals
from synth_service.local.supervisor import CannotKeepRunning

EXAMPLE: Final = Path("examples") / "digits"

REPORTED: Final = (
    "teacher_top1",
    "student_top1",
    "agreement",
    "images",
    "synthesis_images_per_second",
    "kd_steps_per_second",
)
"""Fields of the job's result that the demo passes on as they are."""


def run_demo(*, storage: Path, seed: int | None, as_json: bool) -> None:
    """Runs the example and shows what came of it.

    Args:
        storage: folder for everything that is made; what earlier runs left there stays.
        seed: of the job; None leaves the one of its file.
        as_json: end with a line of JSON on stdout; everything else is on stderr then.
    """
    started_at = time.monotonic()
    example = find_example()
    storage = storage.expanduser().absolute()
    spec = load_job_file(str(example / "job.yaml"), [] if seed is None else [f"seed={seed}"])
    try:
        copy_inputs(spec, example, Storage(str(storage)))
        log = (storage / "demo.log").open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        fail(f"{error.filename or storage}: {error.strerror or error}; choose another folder with --storage")
    # The server's data is of no use after the demo, and an interrupted one must not go on in the next.
    with StopSignals() as signals, tempfile.TemporaryDirectory(prefix="dfkd-demo-") as redis_folder, log:
        service = LocalService(
            storage=str(storage),
            redis_url=None,
            redis_folder=Path(redis_folder),
            host=LOOPBACK,
            port=0,
            synth_workers=1,
            distillers=1,
            signals=signals,
            on_output=lambda name, line: print(f"{name:>12} {line}", file=log),
            on_event=lambda text: messages.print(f"[yellow]{escape(text)}[/]"),
        )
        try:
            messages.print("starting the server, the API, a synthesis worker and a distiller …")
            with service, connected(service.url, sleep=service.pause) as client:
                job = _distil(service, client, spec)
        except Interrupted:
            messages.print("interrupted; everything is stopped")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except CannotStart as error:
            fail(f"{error}; the log is {log.name}")
        except CannotKeepRunning as error:
            report(error)
    if job.state is not State.SUCCEEDED:
        reason = f"{job.error.code}: {job.error.message}" if job.error else str(job.state)
        fail(f"the job did not succeed: {reason}; the log is {log.name}")
    outcome = summarize(job, Storage(str(storage)), seconds=time.monotonic() - started_at)
    (messages if as_json else output).print(outcome_table(outcome))
    if as_json:
        print_json(outcome)


def find_example() -> Path:
    """The folder of the digits example: of the checkout that this package is part of, or of the current folder."""
    bases = (Path(__file__).resolve().parents[2], Path.cwd())
    found = [base / EXAMPLE for base in bases if (base / EXAMPLE / "job.yaml").is_file()]
    if not found:
        fail(f"there is no {EXAMPLE} here; run the demo from a checkout of the repository", ExitCode.USAGE)
    return found[0]


def copy_inputs(spec: dict[str, Any], example: Path, storage: Storage) -> None:
    """Puts the files that the job names into the storage."""
    for name in (spec["teacher"]["checkpoint"], spec["evaluation"]["shards"]):
        storage.put_file(example / Path(name).name, name)


def _distil(service: LocalService, client: Client, spec: dict[str, Any]) -> JobRecord:
    service.wait_until_ready()
    messages.print(f"the API listens on {service.url}")
    job = client.jobs.create(spec)
    messages.print(f"submitted {job.id}: synthesis and distillation run at the same time")
    return job.wait(progress=display_for(messages))


def summarize(job: JobRecord, storage: Storage, *, seconds: float) -> dict[str, Any]:
    """What the demo prints as JSON, all of it from the job's record."""
    result = job.result or {}
    missing = [name for name in (*REPORTED, "student", "grid") if result.get(name) is None]
    if missing:
        fail(f"the job's result lacks {', '.join(missing)}")
    paths = {name: storage.local_path(str(result[name])) for name in ("student", "grid")}
    for path in paths.values():
        if path is None or not path.is_file():
            fail(f"the job names a file that is not there: {path}")
    return {
        "job": job.id,
        "seed": job.spec["seed"],
        **{name: result[name] for name in REPORTED},
        "kd_steps": result.get("kd_steps"),
        "seconds": round(seconds, 1),
        "student_path": str(paths["student"]),
        "grid_path": str(paths["grid"]),
    }


def outcome_table(outcome: dict[str, Any]) -> Table:
    """The outcome for people."""
    table = Table(show_header=False, title="digits, distilled without a digit", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in (
        ("teacher top-1, held-out digits", f"{outcome['teacher_top1']:.4f}"),
        ("student top-1, held-out digits", f"[bold green]{outcome['student_top1']:.4f}[/]"),
        ("agreement", f"{outcome['agreement']:.4f}"),
        ("images made", f"{outcome['images']:,}"),
        ("synthesis", f"{outcome['synthesis_images_per_second']:,.1f} images/s"),
        ("distillation", f"{outcome['kd_steps_per_second']:,.1f} steps/s"),
        ("seconds in all", f"{outcome['seconds']:.1f}"),
        ("student", escape(outcome["student_path"])),
        ("picture grid", escape(outcome["grid_path"])),
    ):
        table.add_row(label, text)
    return table
