"""A service with API keys: nobody gets in with a wrong one, and whoever signed in stays so over a restart."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from shared.api_keys import new_api_key
from shared.jobs import State
from shared.storage import Storage
from tests.browser.conftest import OpenPage
from tests.browser.jobs import small_digits
from tests.browser.pages import accessibility_violations
from tests.e2e.service import Service

KEY, ENTRY = new_api_key("anna")
REFUSED = [("/ui/sign-in", "401"), ("/ui/sign-in", "403")]


@pytest.fixture(scope="module")
def guarded(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API that knows one key. There are no workers, so jobs stay queued."""
    folder = tmp_path_factory.mktemp("guarded")
    service = Service(f"{redis_server}/1", Storage(str(folder / "storage")), folder / "logs", {"DFKD_API_KEYS": ENTRY})
    service.client.headers["Authorization"] = f"Bearer {KEY}"
    try:
        service.start("api", "synth_service.api")
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


def test_a_wrong_key_is_refused_and_the_right_one_leads_to_where_one_was_going(
    open_page: OpenPage, guarded: Service
) -> None:
    job_id = guarded.submit(small_digits("guarded"))
    page = open_page(guarded, f"/ui/jobs/{job_id}", expected=REFUSED)
    assert "/ui/sign-in" in page.url
    page.get_by_label("API key").fill("dfkd_this-is-not-the-key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.context.cookies() == []
    assert accessibility_violations(page) == []

    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**/ui/jobs/{job_id}")
    expect(page.locator("h1")).to_have_text("guarded")
    [cookie] = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert KEY not in cookie["value"]


@pytest.mark.parametrize("appearance", ["light", "dark"])
def test_the_sign_in_page_is_accessible(open_page: OpenPage, guarded: Service, appearance: str) -> None:
    page = open_page(guarded, "/ui/sign-in", color_scheme=appearance)
    assert accessibility_violations(page) == []


def test_a_session_acts_outlives_a_restart_and_ends_with_signing_out(open_page: OpenPage, guarded: Service) -> None:
    job_id = guarded.submit(small_digits("acted on"))
    # The page asks on during the outage, and in the moment between signing out and leaving.
    failures = [("", "net::ERR_"), ("htmx.min.js", "htmx:"), ("", "503"), ("", "401")]
    page = open_page(guarded, "/ui/", expected=failures)
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="acted on").click()
    expect(page.locator("#log-list")).to_contain_text("job created")
    guarded.processes["api"].send_signal(signal.SIGKILL)
    guarded.processes["api"].wait()
    guarded.start("api", "synth_service.api")
    guarded.wait_until_ready()
    # Cancelling needs the session and its CSRF token.
    page.get_by_role("button", name="Cancel …").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#job-facts > .badge:not(#job-quality)")).to_have_text("cancelled", ignore_case=True)
    assert guarded.record(job_id).state is State.CANCELLED

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/ui/sign-in*")
    page.goto("/ui/")
    assert "/ui/sign-in" in page.url
