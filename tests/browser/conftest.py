"""The dashboard in a real browser, over real processes.

Chromium is Debian's; Playwright only drives it and downloads nothing. Where there is none, these tests are skipped
with a word on how to get it, unless ``DFKD_REQUIRE_BROWSER`` is set, as CI does: then they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from shared.jobs import State
from shared.storage import Storage
from tests.browser.jobs import small_digits
from tests.browser.pages import Watch
from tests.e2e.service import Service

WAIT_MS = 90_000
"""For anything that should show; a machine that is busy with other tests needs some of it."""


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips, or fails, what needs a browser where there is none. From here, so that it is one line of the summary."""
    if CHROMIUM is None and "browser" in getattr(item, "fixturenames", ()):
        reason = "no Chromium here, so the dashboard was not tested in a browser: apt-get install chromium"
        pytest.fail(reason, pytrace=False) if os.environ.get("DFKD_REQUIRE_BROWSER") else pytest.skip(reason)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Ends with this folder's tests: Playwright keeps an event loop in the thread until then."""
    # Chromium's own sandbox does not work for root, which containers and CI usually are.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def service(browser: Browser, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one worker of each role, for all tests of this folder. Only started where there is a browser."""
    folder = tmp_path_factory.mktemp("service")
    service = Service(redis_server, Storage(str(folder / "storage")), folder / "logs", {})
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


@pytest.fixture
def api_alone(browser: Browser, redis_server: str, tmp_path: Path) -> Iterator[Service]:
    """An API without workers over a database of its own: the test plays the worker."""
    service = Service(
        f"{redis_server.rstrip('/').removesuffix('/0')}/7", Storage(str(tmp_path / "storage")), tmp_path / "logs", {}
    )
    try:
        service.start("api", "synth_service.api")
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="package")
def finished_job(service: Service) -> str:
    """A job that has succeeded."""
    job_id = service.submit(small_digits("finished"))
    assert service.wait_until_final(job_id).state is State.SUCCEEDED
    return job_id


@pytest.fixture
def running_job(service: Service) -> Iterator[str]:
    """A job that runs for much longer than a test; cancelled when it ends."""
    job_id = service.submit(small_digits("running", images=100_000, steps=100_000))
    service.wait_for(job_id, lambda record: record.state is State.RUNNING)
    yield job_id
    service.client.post(f"/jobs/{job_id}/cancel")
    service.wait_until_final(job_id)


class OpenPage(Protocol):
    """Opens a page of the service in a browser profile of its own."""

    def __call__(
        self, service: Service, path: str = "/ui/", *, expected: Collection[tuple[str, str]] = (), **options: Any
    ) -> Page: ...


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages, and fails in the end if one had anything to complain of (see ``Watch``)."""
    contexts: list[BrowserContext] = []
    watches: list[Watch] = []

    def open_page(
        service: Service, path: str = "/ui/", *, expected: Collection[tuple[str, str]] = (), **options: Any
    ) -> Page:
        url = str(service.client.base_url).rstrip("/")
        settings = {"locale": "en-GB", "timezone_id": "Asia/Kolkata", "reduced_motion": "reduce", **options}
        context = browser.new_context(base_url=url, **settings)
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        watches.append(Watch(page, url, expected))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    complaints = [each for watch in watches for each in watch.complaints]
    assert not complaints
