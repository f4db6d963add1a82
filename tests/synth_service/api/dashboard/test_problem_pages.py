import pytest
from starlette.testclient import TestClient

from shared.settings import Settings
from synth_service.api.app import create_app

HTML = {"Accept": "text/html"}


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/ui/nothing-here", 404, "Not found"),
        ("/ui/jobs/job-00000000000000000000", 404, "There is no job"),
        ("/ui/jobs/x", 422, "This address is not valid"),
    ],
)
def test_a_browser_is_shown_a_page(client: TestClient, path: str, status: int, words: str) -> None:
    page = client.get(path, headers=HTML)
    assert page.status_code == status
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-length"] == str(len(page.content))
    assert "content-security-policy" in page.headers
    assert words in page.text
    assert 'href="/ui/"' in page.text


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ui/nothing-here", {"Accept": "application/json"}),
        ("/ui/nothing-here", {"Accept": "text/html", "HX-Request": "true"}),
        ("/ui/static/nothing-here", HTML),
        ("/jobs/job-00000000000000000000", HTML),
    ],
)
def test_everyone_else_gets_the_problem(client: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_head_of_a_page_has_no_body(client: TestClient) -> None:
    answer = client.head("/ui/nothing-here", headers=HTML)
    assert answer.status_code in (404, 405)
    assert answer.content == b""


def test_an_outage_is_told_with_a_way_to_try_again(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"}))) as client:
        page = client.get("/ui/?name=a", headers=HTML)
    assert page.status_code == 503
    assert page.headers["retry-after"] == "2"
    assert 'href="/ui/?name=a"' in page.text
    assert "Try again" in page.text
