import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.settings import Settings
from shared.storage import Storage
from synth_service.api.app import create_app
from synth_service.api.security.auth import PUBLIC_PATHS, PUBLIC_PREFIX, new_api_key, safe_next
from tests.synth_service.api.conftest import complete
from tests.synth_service.api.keys import KEYS, bearer, with_keys
from tests.synth_service.api.running import running
from tests.synth_service.api.test_main import outcome, start
from tests.synth_service.api.test_problems import problem

UNKNOWN_JOB = "job-" + "0" * 20


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(with_keys(settings))


@pytest.fixture
def owning(settings: Settings) -> Iterator[TestClient]:
    """The API where callers have only their own jobs."""
    with TestClient(create_app(with_keys(settings, own_jobs_only=True))) as client:
        yield client


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route there is, whoever added it; parameters stand as they are written."""
    found: list[tuple[str, str]] = []

    def walk(routes: Any, prefix: str) -> None:
        for route in routes:
            nested = getattr(route, "original_router", None)
            if nested is not None:
                walk(nested.routes, prefix)
            elif hasattr(route, "path") and getattr(route, "methods", None):
                found.extend((method, prefix + route.path) for method in sorted(route.methods))

    walk(app.routes, "")
    return found


def test_every_route_but_the_public_ones_needs_a_key(client: TestClient, app: FastAPI) -> None:
    asked = 0
    for method, path in operations(app):
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            continue
        response = client.request(method, path.replace("{job_id}", UNKNOWN_JOB))
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"].startswith("Bearer")
        asked += 1
    assert asked >= 15


def test_unknown_paths_need_a_key_too(client: TestClient) -> None:
    problem(client.get("/nothing"), 401, "api_key_missing")
    problem(client.get("/ui/static"), 401, "api_key_missing")
    problem(client.get("/healthz/../jobs"), 401, "api_key_missing")
    problem(client.get("/nothing", headers=bearer("alice")), 404, "no_such_path")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
def test_public_paths_need_none_and_a_wrong_one_does_not_hurt(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200
    assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 200


def test_any_of_several_keys_is_accepted_in_either_header(client: TestClient) -> None:
    for name, key in KEYS.items():
        assert client.get("/jobs", headers=bearer(name)).status_code == 200
        assert client.get("/jobs", headers={"Authorization": f"bearer  {key}"}).status_code == 200
        assert client.get("/jobs", headers={"X-API-Key": key}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong-key-0123456789"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": KEYS["alice"]},
        {"Authorization": f"Basic {KEYS['alice']}"},
        {"Authorization": "Bearer \xff\xfe".encode("latin-1")},
        {"X-API-Key": ""},
        {"X-API-Key": "alice"},
        {"Authorization": "Bearer wrong-key-0123456789", "X-API-Key": KEYS["alice"]},
    ],
)
def test_what_is_no_key_is_refused(client: TestClient, headers: dict[str, Any]) -> None:
    response = client.get("/jobs", headers=headers)
    problem(response, 401, "api_key_invalid")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


def test_a_key_in_the_query_is_not_accepted(client: TestClient) -> None:
    problem(client.get("/jobs", params={"api_key": KEYS["alice"]}), 401, "api_key_missing")


def test_a_key_that_is_configured_by_its_hash_is_accepted(settings: Settings) -> None:
    key, entry = new_api_key("ci")
    with TestClient(create_app(with_keys(settings, api_keys=entry))) as client:
        assert client.get("/jobs", headers={"X-API-Key": key}).status_code == 200
        digest = entry.rpartition(":")[2]
        problem(client.get("/jobs", headers={"X-API-Key": digest}), 401, "api_key_invalid")


def test_without_keys_everybody_may_do_everything(settings: Settings, written: dict[str, Any]) -> None:
    with TestClient(create_app(settings)) as client:
        job = client.post("/jobs", json=written).json()
        assert job["owner"] is None
        assert client.get(f"/jobs/{job['id']}", headers={"Authorization": "Bearer any"}).status_code == 200


def test_guessing_is_slowed_down_for_the_guesser_only(client: TestClient) -> None:
    answers = [client.get("/jobs", headers={"X-API-Key": f"guess-{number}"}).status_code for number in range(30)]
    assert answers[:20] == [401] * 20
    assert set(answers[21:]) == {429}
    refused = client.get("/jobs", headers={"X-API-Key": "guess"})
    problem(refused, 429, "rate_limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/jobs", headers=bearer("alice")).status_code == 200


def test_a_job_names_the_key_that_started_it(client: TestClient, written: dict[str, Any]) -> None:
    job = client.post("/jobs", json=written, headers=bearer("alice")).json()
    assert job["owner"] == "alice"
    assert client.get(f"/jobs/{job['id']}", headers=bearer("bob")).json()["owner"] == "alice"


def test_an_idempotency_key_belongs_to_the_api_key_that_sent_it(client: TestClient, written: dict[str, Any]) -> None:
    def post(name: str) -> str:
        headers = {**bearer(name), "Idempotency-Key": "1"}
        return str(client.post("/jobs", json=written, headers=headers).json()["id"])

    assert post("alice") == post("alice")
    assert post("bob") == post("bob") != post("alice")


def test_a_poll_with_a_key_costs_one_round_trip(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    job = client.post("/jobs", json=written, headers=bearer("alice")).json()["id"]

    def commands() -> int:
        return int(broker.redis.info("stats")["total_commands_processed"])

    client.get(f"/jobs/{job}", headers=bearer("alice"))
    before = commands()
    for _ in range(5):
        assert client.get(f"/jobs/{job}", headers=bearer("alice")).status_code == 200
    assert commands() - before == 5 + 1  # and the INFO before


def test_the_jobs_of_others_do_not_exist_where_callers_have_their_own(
    owning: TestClient, app: FastAPI, written: dict[str, Any], broker: Broker, storage: Storage
) -> None:
    job = owning.post("/jobs", json=written, headers=bearer("alice")).json()["id"]
    complete(broker, storage)
    asked = 0
    for method, path in operations(app):
        if "{job_id}" not in path:
            continue
        address = path.replace("{job_id}", job).replace("{name}", "shard.tar")
        # A body that cannot be read is refused before anybody looks for the job.
        response = owning.request(method, address, headers=bearer("bob"), json={} if method == "POST" else None)
        assert response.status_code == 404, (method, path, response.text)
        assert path.startswith("/ui") or response.json()["code"] == "job_not_found", (method, path)
        asked += 1
    assert asked >= 8
    assert owning.get("/jobs", headers=bearer("bob")).json()["data"] == []
    assert [each["id"] for each in owning.get("/jobs", headers=bearer("alice")).json()["data"]] == [job]
    assert owning.get(f"/jobs/{job}", headers=bearer("alice")).status_code == 200
    assert owning.delete(f"/jobs/{job}", headers=bearer("alice")).status_code == 204


def test_where_callers_have_their_own_jobs_nobody_has_those_from_before(owning: TestClient, job: JobRecord) -> None:
    assert job.owner is None
    problem(owning.get(f"/jobs/{job.id}", headers=bearer("alice")), 404, "job_not_found")
    problem(owning.post(f"/jobs/{job.id}/cancel", headers=bearer("alice")), 404, "job_not_found")


def test_pages_of_owned_jobs_hold_no_gaps(owning: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    made = [owning.post("/jobs", json=written, headers=bearer(name)).json()["id"] for name in ("alice", "bob", "alice")]
    first = owning.get("/jobs", params={"limit": 1}, headers=bearer("alice")).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == ([made[2]], True)
    rest = owning.get("/jobs", params={"after": made[2]}, headers=bearer("alice")).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([made[0]], False)


def test_the_document_says_how_to_authenticate_and_what_a_refusal_is(client: TestClient, settings: Settings) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header", "session"}
    assert {} not in document["security"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert {"403", "429"} <= operation["responses"].keys()
            assert ("401" in operation["responses"]) == (path not in PUBLIC_PATHS)
            assert (operation.get("security") == []) == (path in PUBLIC_PATHS)
            assert list(operation["responses"]) == sorted(operation["responses"])
    with TestClient(create_app(settings)) as open_client:
        assert {} in open_client.get("/openapi.json").json()["security"]


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("/ui/jobs/1?tab=events", "/ui/jobs/1?tab=events"),
        (None, "/ui/"),
        ("", "/ui/"),
        ("/ui/sign-in", "/ui/"),
        ("//evil.example/ui/", "/ui/"),
        ("https://evil.example/ui/", "/ui/"),
        ("/\\evil.example", "/ui/"),
        ("/ui/\\evil.example", "/ui/"),
        ("/ui/\r\nSet-Cookie: a=b", "/ui/"),
        ("javascript:alert(1)", "/ui/"),
        ("/jobs", "/ui/"),
    ],
)
def test_a_sign_in_leads_to_no_other_site(wanted: str | None, shown: str) -> None:
    assert safe_next(wanted) == shown


def test_a_browser_is_led_to_the_sign_in_page_and_programs_are_told(client: TestClient) -> None:
    page = {"Accept": "text/html,application/xhtml+xml"}
    led = client.get("/ui/jobs/a b?x=1&y=2", headers=page, follow_redirects=False)
    assert led.status_code == 303
    assert led.headers["location"] == "/ui/sign-in?next=%2Fui%2Fjobs%2Fa%2520b%3Fx%3D1%26y%3D2"
    assert led.headers["cache-control"] == "no-store"
    problem(client.get("/ui/", headers={"Accept": "*/*"}), 401, "api_key_missing")
    problem(client.get("/jobs", headers=page), 401, "api_key_missing")
    assert client.post("/ui/", headers=page).status_code == 401
    assert client.get("/ui/", headers={**page, "X-API-Key": "wrong"}, follow_redirects=False).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_does_not_listen_beyond_loopback_without_a_key(tmp_path: Path, host: str) -> None:
    code, output = outcome(start(REDIS_URL="redis://127.0.0.1:1", DFKD_STORAGE=str(tmp_path), DFKD_HOST=host))
    assert (code, len(output.strip().splitlines())) == (2, 1), output
    for remedy in ("DFKD_API_KEYS", "127.0.0.1", "DFKD_ALLOW_UNAUTHENTICATED"):
        assert remedy in output


@pytest.mark.parametrize(
    "remedy", [{"DFKD_API_KEYS": f"a:{KEYS['alice']}"}, {"DFKD_ALLOW_UNAUTHENTICATED": "true"}], ids=["key", "told so"]
)
def test_it_listens_beyond_loopback_with_a_key_or_when_told_so(
    settings: Settings, tmp_path: Path, remedy: dict[str, str]
) -> None:
    assert settings.redis_url is not None
    common = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage, "DFKD_HOST": "0.0.0.0"}
    with running(tmp_path / "log", **common, **remedy) as url:
        expected = 401 if "DFKD_API_KEYS" in remedy else 200
        assert httpx.get(f"{url}/jobs", trust_env=False).status_code == expected


def test_no_secret_reaches_the_log_or_redis(
    settings: Settings, broker: Broker, written: dict[str, Any], tmp_path: Path
) -> None:
    password, key, wrong = "redis-password-0123", KEYS["alice"], "wrong-key-0123456789"
    assert settings.redis_url is not None
    log = tmp_path / "log"
    broker.redis.config_set("requirepass", password)
    try:
        url_with_password = settings.redis_url.replace("redis://", f"redis://:{password}@")
        variables = {"REDIS_URL": url_with_password, "DFKD_STORAGE": settings.storage, "DFKD_LOG_LEVEL": "debug"}
        with (
            running(log, **variables, DFKD_API_KEYS=f"alice:{key}") as url,
            httpx.Client(base_url=url, trust_env=False) as client,
        ):
            shown = {"Authorization": f"Bearer {key}"}
            assert client.post("/jobs", json=written, headers=shown).status_code == 202
            assert client.get("/jobs", headers={"X-API-Key": wrong}).status_code == 401
            # An outage, so that the messages of the driver are in the log as well.
            broker.redis.config_set("requirepass", "another-password-0123")
            broker.redis.client_kill_filter(_type="normal", skipme=True)
            assert client.get("/jobs", headers=shown).status_code in (500, 503)
            broker.redis.config_set("requirepass", password)
    finally:
        broker.redis.config_set("requirepass", "")
    written_down = log.read_text()
    assert "wrong_api_key" in written_down
    for secret in (password, key, wrong):
        assert secret not in written_down
    stored = "".join(repr(_content(broker, name)) for name in broker.redis.keys("*"))
    assert "alice" in stored
    for secret in (password, key):
        assert secret not in stored


def _content(broker: Broker, name: str) -> Any:
    redis = broker.redis
    read = {"hash": redis.hgetall, "string": redis.get, "set": redis.smembers, "stream": redis.xrange}
    return read.get(redis.type(name), lambda key: redis.zrange(key, 0, -1))(name)


def test_a_body_is_not_read_before_the_key_is_checked(settings: Settings, tmp_path: Path) -> None:
    assert settings.redis_url is not None
    variables = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage}
    with running(tmp_path / "log", **variables, DFKD_API_KEYS=f"alice:{KEYS['alice']}") as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            head = f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 900000\r\n\r\n".encode())
            assert re.match(rb"HTTP/1.1 401 ", connection.recv(1000))
