"""Every page in every state, light and dark: axe-core finds nothing serious, and nothing runs out of a phone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from shared.storage import Storage
from tests.browser.conftest import OpenPage
from tests.browser.jobs import small_digits
from tests.browser.pages import accessibility_violations
from tests.e2e.service import Service

LONG_NAME = "a-name-of-one-word-that-nobody-would-give-a-job-but-some-script-does-" * 2


@pytest.fixture(scope="module")
def failed_job(service: Service) -> str:
    """A job with a long name whose teacher cannot be loaded."""
    service.storage.put_bytes(b"nothing that loads", "broken.safetensors")
    job = small_digits(LONG_NAME)
    job["teacher"]["checkpoint"] = "broken.safetensors"
    job_id = service.submit(job)
    service.wait_until_final(job_id)
    return job_id


@pytest.fixture(scope="module")
def empty_service(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that nobody has used yet."""
    folder = tmp_path_factory.mktemp("empty")
    service = Service(f"{redis_server}/2", Storage(str(folder / "storage")), folder / "logs", {})
    try:
        service.start("api", "synth_service.api")
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


def check(page: Page, appearance: str) -> None:
    """As it is drawn, and again on a phone."""
    assert accessibility_violations(page) == [], (page.url, appearance)
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.documentElement.scrollWidth <= 360")  # charts are drawn anew
    assert accessibility_violations(page) == [], (page.url, appearance, "phone")


@pytest.mark.parametrize("appearance", ["light", "dark"])
class TestAccessibility:
    def test_jobs(
        self, open_page: OpenPage, service: Service, finished_job: str, failed_job: str, appearance: str
    ) -> None:
        page = open_page(service, color_scheme=appearance)
        expect(page.locator(f"#{failed_job}")).to_contain_text("failed", ignore_case=True)
        check(page, appearance)

    def test_no_jobs(self, open_page: OpenPage, empty_service: Service, appearance: str) -> None:
        for path in ("/ui/", "/ui/workers", "/ui/compare"):
            check(open_page(empty_service, path, color_scheme=appearance), appearance)

    def test_a_running_job(self, open_page: OpenPage, service: Service, running_job: str, appearance: str) -> None:
        page = open_page(service, f"/ui/jobs/{running_job}", color_scheme=appearance)
        expect(page.locator("#picture")).to_be_visible()
        check(page, appearance)
        page.get_by_role("button", name="Cancel …").click()
        check(page, appearance)
        check(open_page(service, "/ui/workers", color_scheme=appearance), appearance)

    def test_a_finished_job(self, open_page: OpenPage, service: Service, finished_job: str, appearance: str) -> None:
        page = open_page(service, f"/ui/jobs/{finished_job}", color_scheme=appearance)
        expect(page.locator("#chart-accuracy .chart-legend")).to_be_visible()
        expect(page.locator("#log-list")).to_contain_text("job succeeded")
        check(page, appearance)

    def test_a_failed_job(self, open_page: OpenPage, service: Service, failed_job: str, appearance: str) -> None:
        page = open_page(service, f"/ui/jobs/{failed_job}", color_scheme=appearance)
        expect(page.locator("#log-list")).to_contain_text("job failed")
        check(page, appearance)

    def test_a_comparison(
        self, open_page: OpenPage, service: Service, finished_job: str, failed_job: str, appearance: str
    ) -> None:
        page = open_page(service, f"/ui/compare?job={finished_job}&job={failed_job}", color_scheme=appearance)
        expect(page.locator(".chart-legend").first).to_be_visible()
        check(page, appearance)

    def test_the_new_job_form(self, open_page: OpenPage, service: Service, appearance: str) -> None:
        expected = [("/jobs:validate", "422")]
        page = open_page(service, "/ui/new?example=digits", expected=expected, color_scheme=appearance)
        for summary in page.locator("details > summary").all():
            summary.click()
        page.locator('[name="teacher.num_classes"]').fill("1")
        expect(page.locator("[aria-invalid=true]")).to_have_count(1)
        check(page, appearance)

    def test_a_page_that_is_not_there(self, open_page: OpenPage, service: Service, appearance: str) -> None:
        path = "/ui/jobs/job-00000000000000000000"
        check(open_page(service, path, expected=[(path, "404")], color_scheme=appearance), appearance)
