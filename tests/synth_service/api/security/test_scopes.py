"""What keys may do, until when, and how that changes while the service runs."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient
from structlog.testing import LogCapture
from structlog.typing import EventDict

from shared.api_keys import Scope, new_api_key
from shared.broker.access import Access
from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.security import access
from synth_service.api.security.auth import needed_scope
from tests.synth_service.api.keys import with_keys
from tests.synth_service.api.test_problems import problem
from tests.waiting import wait_until

MADE = {scope: new_api_key(scope, [f"scopes={scope}"]) for scope in Scope}
EVERYTHING = new_api_key("everything", ["scopes=read+submit+admin+metrics"])
EXPIRED = new_api_key("expired", ["expires=2020-01-01"])
PLAIN = new_api_key("plain")


def shown(made: tuple[str, str]) -> dict[str, str]:
    return {"X-API-Key": made[0]}


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    entries = [entry for _, entry in (*MADE.values(), EVERYTHING, EXPIRED, PLAIN)]
    return with_keys(settings, api_keys=",".join(entries), own_jobs_only=True)


@pytest.fixture
def app(keyed: Settings) -> FastAPI:
    return create_app(keyed)


@pytest.fixture
def other(keyed: Settings) -> Iterator[TestClient]:
    """Another API process of the same deployment."""
    with TestClient(create_app(keyed)) as client:
        yield client


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.configure(processors=before)


REQUESTS = [
    ("GET", "/jobs", Scope.READ),
    ("GET", "/workers", Scope.READ),
    ("GET", "/ui/", Scope.READ),
    ("GET", "/nowhere", Scope.READ),
    ("POST", "/jobs", Scope.SUBMIT),
    ("DELETE", "/models/model-" + "0" * 20, Scope.SUBMIT),
    ("POST", "/nowhere", Scope.SUBMIT),
    ("GET", "/metrics", Scope.METRICS),
    ("GET", "/keys", Scope.ADMIN),
    ("POST", "/keys", Scope.ADMIN),
    ("DELETE", "/keys/" + "0" * 16, Scope.ADMIN),
]


@pytest.mark.parametrize(("method", "path", "needed"), REQUESTS)
@pytest.mark.parametrize("scope", Scope)
def test_a_key_does_what_its_scope_says_and_nothing_else(
    client: TestClient, method: str, path: str, needed: Scope, scope: Scope
) -> None:
    answer = client.request(method, path, headers=shown(MADE[scope]))
    if scope is needed:
        assert answer.status_code not in (401, 403)
    else:
        assert needed in problem(answer, 403, "scope_missing").detail


def test_every_route_needs_a_scope_but_signing_out(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert needed_scope(method.upper(), path) is not None
    assert needed_scope("POST", "/ui/sign-out") is None


def test_a_key_without_scopes_may_do_what_it_always_could(client: TestClient) -> None:
    assert client.get("/jobs", headers=shown(PLAIN)).status_code == 200
    assert client.get("/metrics", headers=shown(PLAIN)).status_code == 200
    problem(client.post("/jobs", json={}, headers=shown(PLAIN)), 422, "invalid_request")
    problem(client.get("/keys", headers=shown(PLAIN)), 403, "scope_missing")


def test_an_expired_key_is_none(client: TestClient) -> None:
    problem(client.get("/jobs", headers=shown(EXPIRED)), 401, "api_key_invalid")


def test_a_key_expires_while_the_service_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    made = new_api_key("soon", [f"expires={soon.isoformat()}"])
    with TestClient(create_app(with_keys(settings, api_keys=made[1]))) as client:
        assert client.get("/jobs", headers=shown(made)).status_code == 200
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3_700)
        problem(client.get("/jobs", headers=shown(made)), 401, "api_key_invalid")


def make(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/keys", json={"name": "new"} | fields, headers=shown(EVERYTHING))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_key_is_made_and_counts_in_every_process_without_a_restart(client: TestClient, other: TestClient) -> None:
    other.get("/jobs", headers=shown(PLAIN))
    made = make(client, scopes=["read"])
    headers = {"X-API-Key": made["key"]}
    assert client.get("/jobs", headers=headers).status_code == 200
    problem(client.post("/jobs", json={}, headers=headers), 403, "scope_missing")
    wait_until(lambda: other.get("/jobs", headers=headers).status_code == 200)
    listed = client.get("/keys", headers=shown(EVERYTHING)).json()["data"]
    (found,) = [each for each in listed if each["name"] == "new"]
    assert found["fingerprint"] == made["fingerprint"]
    assert made["key"] not in str(listed)


@pytest.mark.parametrize("is_configured", [True, False])
def test_a_key_is_revoked_in_every_process_without_a_restart(
    client: TestClient, other: TestClient, keyed: Settings, is_configured: bool
) -> None:
    made = {"key": PLAIN[0]} if is_configured else make(client)
    headers = {"X-API-Key": made["key"]}
    wait_until(lambda: other.get("/jobs", headers=headers).status_code == 200)
    listed = client.get("/keys", headers=shown(EVERYTHING)).json()["data"]
    (fingerprint,) = [each["fingerprint"] for each in listed if each["name"] == ("plain" if is_configured else "new")]
    assert client.delete(f"/keys/{fingerprint}", headers=shown(EVERYTHING)).status_code == 204
    problem(client.get("/jobs", headers=headers), 401, "api_key_invalid")
    wait_until(lambda: other.get("/jobs", headers=headers).status_code == 401)
    with TestClient(create_app(keyed)) as restarted:
        problem(restarted.get("/jobs", headers=headers), 401, "api_key_invalid")
    problem(client.delete(f"/keys/{fingerprint}", headers=shown(EVERYTHING)), 404, "key_not_found")


def test_what_was_known_goes_on_counting_while_redis_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "RENEWAL_SECONDS", 0.0)

    def unreachable(_access: Access) -> str:
        raise redis.ConnectionError

    with TestClient(create_app(with_keys(settings, api_keys=PLAIN[1]))) as client:
        assert client.get("/architectures", headers=shown(PLAIN)).status_code == 200
        monkeypatch.setattr(Access, "version", unreachable)
        assert client.get("/architectures", headers=shown(PLAIN)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [{"name": "a b"}, {"name": ""}, {"scopes": ["root"]}, {"expires_at": 1}, {"allowance": {"bytes": -1}}, {"x": 1}],
)
def test_what_is_no_key_is_not_made(client: TestClient, fields: dict[str, Any]) -> None:
    problem(client.post("/keys", json={"name": "new"} | fields, headers=shown(EVERYTHING)), 422, "invalid_request")


def test_without_configured_keys_none_are_made(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        problem(client.post("/keys", json={"name": "new"}), 409, "no_keys_configured")


def test_an_admin_sees_the_jobs_of_all(client: TestClient, written: dict[str, Any]) -> None:
    job = client.post("/jobs", json=written, headers=shown(PLAIN)).json()["id"]
    assert client.get(f"/jobs/{job}", headers=shown(EVERYTHING)).status_code == 200
    problem(client.get(f"/jobs/{job}", headers=shown(MADE[Scope.READ])), 404, "job_not_found")


def test_each_change_leaves_a_line_that_says_who_did_what(
    client: TestClient, written: dict[str, Any], lines: list[EventDict]
) -> None:
    job = client.post("/jobs", json=written, headers=shown(PLAIN)).json()["id"]
    client.post(f"/jobs/{job}/cancel", headers=shown(PLAIN))
    client.delete(f"/jobs/{job}", headers=shown(PLAIN))
    made = make(client)
    client.delete(f"/keys/{made['fingerprint']}", headers=shown(EVERYTHING))
    client.post("/jobs", json={}, headers=shown(PLAIN))  # refused
    client.post("/jobs:validate", json=written, headers=shown(PLAIN))  # changes nothing
    client.get("/jobs", headers=shown(PLAIN))
    audited = [line for line in lines if line["event"] == "audit"]
    assert [(line["action"], line["caller"]) for line in audited] == [
        ("POST /jobs", "plain"),
        (f"POST /jobs/{job}/cancel", "plain"),
        (f"DELETE /jobs/{job}", "plain"),
        ("POST /keys", "everything"),
        (f"DELETE /keys/{made['fingerprint']}", "everything"),
    ]
    assert audited[0]["target"] == f"/jobs/{job}"
    assert audited[3]["of"] == audited[4]["of"] == "new"
    assert all(line["key"] and line["address"] == "testclient" for line in audited)
    assert made["key"] not in str(lines)
