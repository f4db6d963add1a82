"""A job as one sees it: everything moves by itself, nothing is lost, and actions do what they say."""

from __future__ import annotations

import signal
import threading
from functools import partial

from playwright.sync_api import Page, expect

from shared.broker import Attempt
from shared.jobs import Role, State
from tests.browser.conftest import OpenPage
from tests.browser.jobs import small_digits
from tests.e2e.service import Service
from tests.shared.broker.manifests import manifest_of
from tests.waiting import wait_until


class Announcing:
    """Announces 20 shards a second in a thread of its own, as a fast GPU does."""

    def __init__(self, service: Service, attempt: Attempt) -> None:
        self.shards = 0
        self._broker, self._attempt = service.broker, attempt
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._announce)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _announce(self) -> None:
        while not self._stopped.wait(0.05) and self.shards < 600:
            manifest = manifest_of(self._attempt, self.shards, images=32)
            self._broker.shards.announce(self._attempt, manifest, {})
            self.shards += 1
            self._broker.leases.renew(self._attempt, done=32 * self.shards, rate=640.0)


STATE = "#job-facts > .badge:not(#job-quality)"
LOGGED_TYPES = "[...document.querySelectorAll('#log-list .log-type')].map((each) => each.textContent)"
OUTAGE = [("", "net::ERR_"), ("htmx.min.js", "htmx:"), ("", "503")]
NOTE_CHANGES = """
window.seen = {bars: new Set(), pictures: new Set(), legends: new Set()};
setInterval(() => {
  for (const bar of document.querySelectorAll('.stages progress')) window.seen.bars.add(bar.value);
  const picture = document.getElementById('picture');
  if (picture?.naturalWidth) window.seen.pictures.add(picture.src);
  window.seen.legends.add([...document.querySelectorAll('.chart-legend')].map((each) => each.textContent).join());
}, 20);
"""


def test_a_job_through_the_form_is_watched_to_its_end_without_reload(open_page: OpenPage, service: Service) -> None:
    page = open_page(service)
    page.get_by_role("link", name="New job").first.click()
    page.get_by_role("link", name="Start from the digits example").click()
    for path, value in (
        ("name", "through the form"),
        ("synthesis.num_images", "512"),
        ("synthesis.batch_size", "64"),
        ("distillation.steps", "60"),
        ("distillation.batch_size", "64"),
        ("evaluation.every_steps", "10"),
    ):
        page.locator(f'[name="{path}"]').fill(value)
    expect(page.locator("#form-state")).to_have_text("Ready to start.")
    expect(page.locator("#estimate")).to_contain_text("512 in 8 batches")
    page.get_by_role("button", name="Start job").click()
    page.wait_for_url("**/ui/jobs/job-*")
    page.evaluate(NOTE_CHANGES)
    expect(page.locator("h1")).to_have_text("through the form")

    job_id = page.url.rpartition("/")[2]
    assert service.wait_until_final(job_id).state is State.SUCCEEDED
    expect(page.locator(STATE)).to_have_text("succeeded", ignore_case=True)
    expect(page.locator(".stages progress").nth(0)).to_have_attribute("value", "100.0")
    expect(page.locator(".stages progress").nth(1)).to_have_attribute("value", "100.0")
    expect(page.locator("#chart-accuracy .chart-legend")).to_contain_text("%")
    expect(page.locator("#log-list")).to_contain_text("job succeeded")
    expect(page.get_by_role("link", name="Download student")).to_be_visible()
    # `seen` is still there, so the page was never loaded again.
    seen = {name: page.evaluate(f"[...window.seen.{name}]") for name in ("bars", "pictures", "legends")}
    assert any(0 < percent < 100 for percent in seen["bars"])
    assert len(seen["pictures"]) >= 1
    assert len(seen["legends"]) >= 2


def test_cancelling_asks_first_and_then_shows_the_end(open_page: OpenPage, service: Service, running_job: str) -> None:
    page = open_page(service, f"/ui/jobs/{running_job}")
    expect(page.locator(STATE)).to_have_text("running", ignore_case=True)
    page.get_by_role("button", name="Cancel …").click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    assert service.record(running_job).state is State.RUNNING
    page.get_by_role("button", name="Cancel …").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.locator(STATE)).to_have_text("cancelled", ignore_case=True)
    assert service.record(running_job).state is State.CANCELLED
    expect(page.get_by_role("button", name="Cancel …")).to_have_count(0)


def test_a_page_outlives_a_restart_of_the_server_and_loses_no_event(open_page: OpenPage, service: Service) -> None:
    job_id = service.submit(small_digits("restart", images=512, steps=60))
    page = open_page(service, f"/ui/jobs/{job_id}", expected=OUTAGE)
    expect(page.locator("#log-list")).to_contain_text("shard sealed")
    page.evaluate("window.isSamePage = true")
    service.processes["api"].send_signal(signal.SIGKILL)
    service.processes["api"].wait()
    expect(page.locator("#log-state")).to_contain_text("Connection lost")
    service.start("api", "synth_service.api")
    service.wait_until_ready()
    service.wait_until_final(job_id)

    expect(page.locator(STATE)).to_have_text("succeeded", ignore_case=True)
    events = [event.type.replace("_", " ") for event in service.events(job_id)]
    page.wait_for_function(f"{LOGGED_TYPES}.length >= {len(events)}")
    assert page.evaluate(LOGGED_TYPES) == events
    assert page.evaluate("window.isSamePage")


def shows_more_than(page: Page, percent: float) -> bool:
    return float(page.locator(".stages progress").first.get_attribute("value") or 0) > percent


def test_the_page_keeps_up_with_shards_that_come_faster_than_it_looks(api_alone: Service, open_page: OpenPage) -> None:
    """Each shard is an event, and none of them may put off the page's next look at the job."""
    job_id = api_alone.submit(small_digits("fast", images=32 * 600, steps=20))
    attempt = wait_until(lambda: api_alone.broker.leases.claim(Role.SYNTHESIS, "fast", block_seconds=0.01))
    page = open_page(api_alone, f"/ui/jobs/{job_id}")
    expect(page.locator("#log-list")).to_contain_text("attempt started")
    announcing = Announcing(api_alone, attempt)
    with announcing:
        # The first look comes within 3 s, and each later one, too, while 20 shards come each second.
        for share in (0.5, 10, 20):
            wait_until(partial(shows_more_than, page, share), timeout=20)
    assert announcing.shards < 600, "it was still making shards"
    api_alone.client.post(f"/jobs/{job_id}/cancel")


def test_the_list_of_jobs_follows(open_page: OpenPage, service: Service) -> None:
    page = open_page(service)
    page.evaluate("window.isSamePage = true")
    job_id = service.submit(small_digits("followed"))
    row = page.locator(f"#{job_id}")
    expect(row).to_contain_text("followed")
    service.wait_until_final(job_id)
    expect(row.locator(".badge")).to_have_text("succeeded", ignore_case=True)
    expect(row.locator("progress").first).to_have_attribute("value", "100.0")
    assert page.evaluate("window.isSamePage")


def test_a_failed_job_says_why(open_page: OpenPage, service: Service) -> None:
    service.storage.put_bytes(b"nothing that loads", "broken.safetensors")
    job = small_digits("broken")
    job["teacher"]["checkpoint"] = "broken.safetensors"
    job_id = service.submit(job)
    service.wait_until_final(job_id)
    page = open_page(service, f"/ui/jobs/{job_id}")
    expect(page.get_by_role("alert")).to_contain_text("broken.safetensors")
