from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from shared.jobs import JobRecord
from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.security.headers import SECURITY_HEADERS, host_name, is_cross_site
from tests.synth_service.api.keys import bearer, with_keys
from tests.synth_service.api.running import running
from tests.synth_service.api.test_problems import problem


def client_of(settings: Settings, **changes: Any) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=changes)))


def test_every_answer_carries_the_security_headers_once(app: FastAPI, job: JobRecord, settings: Settings) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError

    with TestClient(app) as client, client_of(with_keys(settings)) as locked:
        answers = [
            client.get(f"/jobs/{job.id}"),
            client.get("/nothing"),
            client.get("/broken"),
            client.post("/jobs", content=b"{"),
            client.get("/healthz"),
            client.get("/jobs", headers={"Host": "evil.example"}),
            locked.get("/jobs"),
            locked.get("/ui/", headers={"Accept": "text/html"}, follow_redirects=False),
        ]
    assert [answer.status_code for answer in answers] == [200, 404, 500, 415, 200, 403, 401, 303]
    for answer in answers:
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers.get_list(name) == [value], (answer.url, name)
        assert len(answer.headers.get_list("cache-control")) == 1


def test_scripts_styles_and_frames_come_from_here_or_nowhere() -> None:
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["script-src"] == rules["style-src"] == rules["default-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["object-src"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in policy


def test_answers_are_not_stored_unless_a_route_says_how(client: TestClient, job: JobRecord) -> None:
    assert client.get("/jobs").headers["cache-control"] == "no-store"
    assert client.get("/nothing").headers["cache-control"] == "no-store"
    assert client.get(f"/jobs/{job.id}").headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("localhost.", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.0.2.7", 200),
        ("[2001:db8::1]", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:8000", 403),
        ("", 403),
        ("[", 403),
        ("testserver", 403),
    ],
)
def test_a_foreign_name_that_points_here_gets_no_answer(settings: Settings, host: str, status: int) -> None:
    with client_of(settings, allowed_hosts=()) as client:
        response = client.get("/jobs", headers={"Host": host})
        assert response.status_code == status
        if status == 403:
            problem(response, 403, "host_not_allowed")
        assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_the_operator_names_further_hosts(settings: Settings) -> None:
    with client_of(settings, allowed_hosts=("dfkd.example.org",)) as client:
        assert client.get("/jobs", headers={"Host": "dfkd.example.org:443"}).status_code == 200
        assert client.get("/jobs", headers={"Host": "other.example.org"}).status_code == 403
    with client_of(settings, allowed_hosts=("*",)) as client:
        assert client.get("/jobs", headers={"Host": "other.example.org"}).status_code == 200


def test_where_keys_are_needed_any_name_will_do_unless_some_are_named(settings: Settings) -> None:
    shown = {**bearer("alice"), "Host": "gpu-7.cluster.local"}
    with client_of(with_keys(settings, allowed_hosts=())) as client:
        assert client.get("/jobs", headers=shown).status_code == 200
    with client_of(with_keys(settings, allowed_hosts="dfkd.example.org")) as client:
        assert client.get("/jobs", headers=shown).status_code == 403


CROSS_SITE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "surprise"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://testserver.evil.example"},
    {"Origin": "http://testserver:3000"},
    {"Origin": "null"},
    {"Origin": ""},
]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
def test_another_site_cannot_change_anything(
    client: TestClient, written: dict[str, Any], job: JobRecord, headers: dict[str, str]
) -> None:
    problem(client.post("/jobs", json=written, headers=headers), 403, "cross_site_request")
    problem(client.post(f"/jobs/{job.id}/cancel", headers=headers), 403, "cross_site_request")
    problem(client.delete(f"/jobs/{job.id}", headers=headers), 403, "cross_site_request")
    assert client.get("/jobs", headers=headers).json()["data"][0]["state"] == "queued"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://testserver"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://name-before-the-proxy.example"},
    ],
    ids=str,
)
def test_programs_and_own_pages_can(client: TestClient, written: dict[str, Any], headers: dict[str, str]) -> None:
    assert client.post("/jobs", json=written, headers=headers).status_code == 202


def test_another_site_cannot_use_a_session_or_a_key_either(settings: Settings) -> None:
    with client_of(with_keys(settings)) as client:
        headers = {**bearer("alice"), "Sec-Fetch-Site": "cross-site"}
        problem(client.post("/jobs", json={}, headers=headers), 403, "cross_site_request")


def test_no_other_site_is_permitted_to_read_answers(client: TestClient) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options("/jobs", headers=asked)
    assert preflight.status_code == 405
    plain = client.get("/jobs", headers=asked)
    for answer in (preflight, plain):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_name_of_a_host_header() -> None:
    assert host_name("Example.ORG.:80") == "example.org"
    assert host_name("[::1]:80") == host_name("[::1]") == "::1"
    assert not is_cross_site(Headers({"origin": "HTTP://LocalHost:80", "host": "localhost:80"}))


def test_a_served_process_refuses_foreign_names_and_sites(settings: Settings, tmp_path: Path) -> None:
    assert settings.redis_url is not None
    variables = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage}
    with running(tmp_path / "log", **variables) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/jobs").status_code == 200
        problem(client.get("/jobs", headers={"Host": "evil.example"}), 403, "host_not_allowed")
        headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
        problem(client.post("/jobs", content="{}", headers=headers), 403, "cross_site_request")
        assert "server" not in client.get("/jobs").headers
