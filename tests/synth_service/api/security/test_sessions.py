import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from shared.api_keys import parse_api_keys
from shared.broker import Broker
from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.security.access import Keyring
from synth_service.api.security.auth import sign_in
from synth_service.api.security.sessions import Sessions, csrf_token, end_session, start_session
from tests.synth_service.api.keys import KEYS, bearer, with_keys
from tests.synth_service.api.test_problems import problem

COOKIE = "dfkd_session"
(ALICE,) = parse_api_keys(f"alice:{KEYS['alice']}")


def secret() -> str:
    return "secret-of-this-test"


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return with_session_routes(with_keys(settings))


def with_session_routes(settings: Settings) -> FastAPI:
    """The application and the least that a sign-in page does, under public paths that no page uses."""
    app = create_app(settings)

    @app.post("/ui/static/test/sign-in/{key}")
    async def enter(key: str, request: Request, response: Response) -> bool:
        found = await sign_in(request, key)
        if found is not None:
            start_session(request, response, found)
        return found is not None

    @app.post("/ui/static/test/sign-out")
    async def leave(request: Request, response: Response) -> None:
        await end_session(request, response)

    @app.get("/test/token")
    def token(request: Request) -> str:
        return csrf_token(request)

    # A page's static files may be mounted under the same prefix already; ours come first.
    app.router.routes.sort(key=lambda route: "/test/" not in getattr(route, "path", ""))
    return app


@pytest.fixture
def signed_in(client: TestClient) -> TestClient:
    assert client.post(f"/ui/static/test/sign-in/{KEYS['alice']}").json() is True
    return client


def token_of(client: TestClient) -> dict[str, str]:
    return {"X-CSRF-Token": client.get("/test/token").json()}


def test_a_session_reads_and_names_its_caller(signed_in: TestClient, written: dict[str, Any]) -> None:
    assert signed_in.get("/jobs").status_code == 200
    job = signed_in.post("/jobs", json=written, headers=token_of(signed_in)).json()
    assert job["owner"] == "alice"


def test_a_wrong_key_starts_no_session(client: TestClient) -> None:
    response = client.post("/ui/static/test/sign-in/wrong-key-0123456789")
    assert response.json() is False
    assert "set-cookie" not in response.headers
    problem(client.get("/jobs"), 401, "api_key_missing")


def test_guessing_at_the_sign_in_is_slowed_down(client: TestClient) -> None:
    answers = [client.post(f"/ui/static/test/sign-in/guess-{number}").status_code for number in range(25)]
    assert answers[:20] == [200] * 20
    assert answers[-1] == 429


def test_a_change_by_a_session_needs_the_token_of_that_session(signed_in: TestClient, app: FastAPI) -> None:
    with TestClient(app) as other:
        other.post(f"/ui/static/test/sign-in/{KEYS['bob']}")
        foreign = token_of(other)["X-CSRF-Token"]
    problem(signed_in.post("/jobs", json={}), 403, "csrf_token_invalid")
    for token in (b"", b"x", foreign.encode(), "é".encode("latin-1")):
        problem(signed_in.post("/jobs", json={}, headers={b"X-CSRF-Token": token}), 403, "csrf_token_invalid")
    problem(signed_in.post("/jobs", json={}, headers=token_of(signed_in)), 422, "invalid_request")
    problem(signed_in.delete("/jobs/job-" + "0" * 20), 403, "csrf_token_invalid")


def test_a_key_in_a_header_needs_no_token_and_wins_over_the_session(
    signed_in: TestClient, written: dict[str, Any]
) -> None:
    assert signed_in.post("/jobs", json=written, headers=bearer("bob")).json()["owner"] == "bob"
    problem(signed_in.get("/jobs", headers={"X-API-Key": "wrong"}), 401, "api_key_invalid")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(client: TestClient) -> None:
    set_cookie = client.post(f"/ui/static/test/sign-in/{KEYS['alice']}").headers["set-cookie"]
    assert set_cookie.startswith(f"{COOKIE}=")
    attributes = {part.strip().lower() for part in set_cookie.split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/", "max-age=604800"}
    assert KEYS["alice"] not in set_cookie
    assert ALICE.digest.get_secret_value()[:16] not in set_cookie


def test_over_https_the_cookie_is_bound_to_the_host(app: FastAPI) -> None:
    with TestClient(app, base_url="https://testserver") as client:
        set_cookie = client.post(f"/ui/static/test/sign-in/{KEYS['alice']}").headers["set-cookie"]
        assert set_cookie.startswith("__Host-dfkd_session=")
        assert "; Secure" in set_cookie
        assert client.get("/jobs").status_code == 200


def test_signing_out_ends_the_session(signed_in: TestClient) -> None:
    signed_in.post("/ui/static/test/sign-out")
    problem(signed_in.get("/jobs"), 401, "api_key_missing")


def test_a_copy_of_the_cookie_is_worth_nothing_after_signing_out(signed_in: TestClient, settings: Settings) -> None:
    cookie = signed_in.cookies[COOKIE]
    signed_in.post("/ui/static/test/sign-out")
    problem(signed_in.get("/jobs", headers={"Cookie": f"{COOKIE}={cookie}"}), 401, "api_key_missing")
    with TestClient(create_app(with_keys(settings)), cookies={COOKIE: cookie}) as another_process:
        problem(another_process.get("/jobs"), 401, "api_key_missing")


def test_a_session_outlives_a_restart_of_the_server(signed_in: TestClient, settings: Settings) -> None:
    cookie, token = signed_in.cookies[COOKIE], token_of(signed_in)
    with TestClient(with_session_routes(with_keys(settings)), cookies={COOKIE: cookie}) as restarted:
        assert restarted.get("/jobs").status_code == 200
        assert token_of(restarted) == token


@pytest.mark.parametrize("keys", [f"bob:{KEYS['bob']}", f"alice:{KEYS['bob']}"], ids=["removed", "replaced"])
def test_a_session_ends_with_its_key(signed_in: TestClient, settings: Settings, keys: str) -> None:
    cookie = signed_in.cookies[COOKIE]
    with TestClient(create_app(with_keys(settings, api_keys=keys)), cookies={COOKIE: cookie}) as restarted:
        problem(restarted.get("/jobs"), 401, "api_key_missing")


def test_deleting_the_secret_ends_every_session_at_the_next_start(
    signed_in: TestClient, settings: Settings, broker: Broker
) -> None:
    cookie = signed_in.cookies[COOKIE]
    broker.redis.delete("dfkd:session-secret")
    with TestClient(create_app(with_keys(settings)), cookies={COOKIE: cookie}) as restarted:
        problem(restarted.get("/jobs"), 401, "api_key_missing")


def test_a_session_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(Keyring([ALICE]), 1.0, secret)
    cookie = sessions.cookie_for(ALICE)
    opened = sessions.open(cookie)
    assert opened is not None
    assert opened.key == ALICE
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3_590)
    assert sessions.open(cookie) is not None
    monkeypatch.setattr(time, "time", lambda: now + 3_610)
    assert sessions.open(cookie) is None


@pytest.mark.parametrize("position", range(0, 90, 7))
def test_a_changed_cookie_is_none(position: int) -> None:
    sessions = Sessions(Keyring([ALICE]), 1.0, secret)
    cookie = sessions.cookie_for(ALICE)
    position %= len(cookie) - 2  # the last character has bits that stand for nothing
    changed = cookie[:position] + ("A" if cookie[position] != "A" else "B") + cookie[position + 1 :]
    assert sessions.open(changed) is None


@pytest.mark.parametrize("cookie", ["", "x", "a.b.c", "é", "." * 50, "A" * 5_000])
def test_what_is_no_cookie_is_none(cookie: str) -> None:
    assert Sessions(Keyring([ALICE]), 1.0, secret).open(cookie) is None


def test_a_cookie_of_another_deployment_is_none() -> None:
    cookie = Sessions(Keyring([ALICE]), 1.0, lambda: "other").cookie_for(ALICE)
    assert Sessions(Keyring([ALICE]), 1.0, secret).open(cookie) is None


def test_what_the_operator_configures_is_not_enough_to_forge_a_session() -> None:
    for guess in (ALICE.digest.get_secret_value(), ALICE.name, ALICE.fingerprint, ""):
        cookie = Sessions(Keyring([ALICE]), 1.0, partial(str, guess)).cookie_for(ALICE)
        assert Sessions(Keyring([ALICE]), 1.0, secret).open(cookie) is None


def test_all_processes_agree_on_the_secret(broker: Broker) -> None:
    assert broker.session_secret() == broker.session_secret()
    assert len(broker.session_secret()) == 64


def test_a_poll_with_a_session_costs_one_round_trip(
    signed_in: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    job = signed_in.post("/jobs", json=written, headers=token_of(signed_in)).json()["id"]
    before = int(broker.redis.info("stats")["total_commands_processed"])
    for _ in range(5):
        assert signed_in.get(f"/jobs/{job}").status_code == 200
    assert (
        int(broker.redis.info("stats")["total_commands_processed"]) - before <= 5 + 1 + 2
    )  # the INFO before, and whether keys have changed


def test_a_session_that_cannot_be_checked_for_lack_of_redis_is_503(settings: Settings) -> None:
    away = with_keys(settings, redis_url="redis://127.0.0.1:1")
    with TestClient(create_app(away), cookies={COOKIE: "x.y.z"}) as client:
        problem(client.get("/architectures"), 503, "redis_unavailable")


@pytest.fixture
def open_client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(with_session_routes(settings)) as client:
        yield client


def test_without_keys_there_is_no_token_and_none_is_needed(open_client: TestClient, written: dict[str, Any]) -> None:
    assert token_of(open_client) == {"X-CSRF-Token": ""}
    assert open_client.post("/jobs", json=written).status_code == 202
