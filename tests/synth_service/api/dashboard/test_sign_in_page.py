import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.settings import Settings
from synth_service.api.app import create_app
from tests.synth_service.api.keys import KEYS, with_keys

HTML = {"Accept": "text/html"}


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(with_keys(settings))


def test_who_opens_a_page_without_a_session_signs_in_and_arrives_there(client: TestClient) -> None:
    form = client.get("/ui/?state=failed", headers=HTML)
    assert form.url.path == "/ui/sign-in"
    assert form.status_code == 200
    action = re.search(r'action="([^"]+)"', form.text)
    assert action is not None
    page = client.post(action[1].replace("&amp;", "&"), data={"key": KEYS["alice"]}, headers=HTML)
    assert str(page.url) == "http://testserver/ui/?state=failed"
    assert page.status_code == 200
    assert "alice" in page.text


def test_a_wrong_key_is_refused_in_words_and_keeps_the_way(client: TestClient) -> None:
    refused = client.post("/ui/sign-in?next=%2Fui%2Fworkers", data={"key": "wrong"}, headers=HTML)
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "text/html; charset=utf-8"
    assert "This key is not accepted" in refused.text
    assert 'action="/ui/sign-in?next=%2Fui%2Fworkers"' in refused.text
    assert "set-cookie" not in refused.headers
    assert "wrong" not in refused.text


def test_a_program_hears_of_a_wrong_key_as_a_problem(client: TestClient) -> None:
    refused = client.post("/ui/sign-in", data={"key": "wrong"}, headers={"Accept": "application/json"})
    assert refused.status_code == 401
    assert refused.json()["code"] == "api_key_invalid"


def test_guessing_is_slowed_down(client: TestClient) -> None:
    answers = [
        client.post("/ui/sign-in", data={"key": "wrong"}, headers=HTML) for _ in range(Settings().max_wrong_keys + 5)
    ]
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert "Too many" in answers[-1].text
    assert client.post("/ui/sign-in", data={"key": KEYS["bob"]}, headers=HTML).status_code == 200


@pytest.mark.parametrize("elsewhere", ["https://example.org/", "//example.org", "/\\example.org", "/ui/sign-in"])
def test_signing_in_leads_nowhere_else(client: TestClient, elsewhere: str) -> None:
    answer = client.post("/ui/sign-in", params={"next": elsewhere}, data={"key": KEYS["alice"]}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"key=&key=", b"other=1"])
def test_a_form_without_a_key_is_a_wrong_key(client: TestClient, body: bytes) -> None:
    assert client.post("/ui/sign-in", content=body, headers=HTML).status_code == 401


def test_a_form_of_any_size_is_not_read_to_its_end(client: TestClient) -> None:
    refused = client.post("/ui/sign-in", content=b"key=" + 10_000 * b"a", headers=HTML)
    assert refused.status_code == 413
    assert "The form may have" in refused.text


def test_signing_out_ends_the_session(client: TestClient) -> None:
    page = client.post("/ui/sign-in", data={"key": KEYS["alice"]}, headers=HTML)
    token = re.search(r'name="csrf-token" content="([^"]+)"', page.text)
    assert token is not None
    assert client.post("/ui/sign-out").status_code == 403
    assert client.post("/ui/sign-out", headers={"X-CSRF-Token": token[1]}).status_code == 204
    assert client.get("/ui/", headers=HTML).url.path == "/ui/sign-in"


def test_without_keys_there_is_nothing_to_sign_in_with(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        assert client.get("/ui/sign-in?next=/ui/workers", headers=HTML).url.path == "/ui/workers"
