from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.security import rate_limits
from synth_service.api.security.rate_limits import RateLimiter, network_of
from tests.synth_service.api.keys import KEYS, bearer, with_keys
from tests.synth_service.api.running import running
from tests.synth_service.api.test_problems import problem


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slow(settings: Settings) -> Settings:
    return with_keys(settings, max_requests_per_second=0.01)


@pytest.fixture
def app(slow: Settings) -> FastAPI:
    return create_app(slow)


def allowed(limiter: RateLimiter, caller: str, times: int) -> int:
    return [limiter.seconds_to_wait(caller) for _ in range(times)].count(0.0)


def test_a_burst_and_then_the_rate(clock: Clock) -> None:
    limiter = RateLimiter(10, 20, clock)
    assert allowed(limiter, "a", 30) == 20
    for _ in range(50):
        clock.now += 0.1
        assert allowed(limiter, "a", 2) == 1
    clock.now += 1.0
    assert allowed(limiter, "a", 20) == 10
    clock.now += 3600
    assert allowed(limiter, "a", 100) == 20


def test_the_time_to_wait_is_the_time_after_which_it_works(clock: Clock) -> None:
    limiter = RateLimiter(3, 4, clock)
    assert allowed(limiter, "a", 5) == 4
    wait = limiter.seconds_to_wait("a")
    assert wait == pytest.approx(1 / 3)
    clock.now += wait * 0.99
    assert limiter.seconds_to_wait("a") > 0
    clock.now += wait * 0.011
    assert limiter.seconds_to_wait("a") == 0


def test_callers_do_not_share_a_limit(clock: Clock) -> None:
    limiter = RateLimiter(1, 5, clock)
    assert allowed(limiter, "a", 9) == 5
    assert allowed(limiter, "b", 9) == 5


def test_refused_requests_do_not_count(clock: Clock) -> None:
    limiter = RateLimiter(1, 1, clock)
    assert allowed(limiter, "a", 1_000) == 1
    clock.now += 1.0
    assert allowed(limiter, "a", 1) == 1


def test_memory_stays_bounded_and_the_busy_are_not_forgotten_for_the_idle(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_CALLERS", 100)
    limiter = RateLimiter(1, 10, clock)
    for number in range(99):
        limiter.seconds_to_wait(f"idle {number}")
    clock.now += 5.0
    assert allowed(limiter, "busy", 20) == 10
    for number in range(50):
        limiter.seconds_to_wait(f"new {number}")
    assert allowed(limiter, "busy", 1) == 0
    for number in range(1_000):
        limiter.seconds_to_wait(f"flood {number}")
    assert len(limiter._due) <= 100


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b", "a:b"),
    ],
)
def test_an_ipv6_host_counts_once_however_many_addresses_it_has(address: str, network: str) -> None:
    assert network_of({"type": "http", "client": (address, 1)}) == network
    assert network_of({"type": "http", "client": None}) == ""


def test_too_many_requests_of_a_key_are_429_with_retry_after_and_other_keys_go_on(client: TestClient) -> None:
    assert client.get("/jobs", headers=bearer("alice")).status_code == 200
    refused = client.get("/jobs", headers=bearer("alice"))
    found = problem(refused, 429, "rate_limited")
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert "DFKD_MAX_REQUESTS_PER_SECOND" in str(found.hint)
    assert client.get("/jobs", headers=bearer("bob")).status_code == 200


def test_without_keys_an_address_is_a_caller(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_requests_per_second": 0.01})
    app = create_app(limited)
    with TestClient(app, client=("192.0.2.1", 1)) as one, TestClient(app, client=("192.0.2.2", 1)) as other:
        assert [one.get("/jobs").status_code for _ in range(3)] == [200, 429, 429]
        assert other.get("/jobs").status_code == 200


def test_a_liveness_probe_is_never_refused(client: TestClient) -> None:
    assert {client.get("/healthz").status_code for _ in range(20)} == {200}
    assert {client.get("/readyz").status_code for _ in range(3)} == {200, 429}


def test_zero_is_no_limit(settings: Settings) -> None:
    assert settings.max_requests_per_second == 0
    with TestClient(create_app(settings)) as client:
        assert {client.get("/architectures").status_code for _ in range(50)} == {200}


def test_requests_without_a_key_are_limited_for_their_address_and_those_with_one_go_on(settings: Settings) -> None:
    app = create_app(with_keys(settings, max_keyless_requests_per_second=0.01))
    with TestClient(app, client=("192.0.2.1", 1)) as stranger, TestClient(app, client=("192.0.2.2", 1)) as other:
        assert [stranger.get("/jobs").status_code for _ in range(3)] == [401, 429, 429]
        assert stranger.get("/jobs", headers=bearer("alice")).status_code == 200
        assert other.get("/jobs").status_code == 401


@pytest.mark.parametrize(("trusted", "statuses"), [("", [401, 429, 429]), ("127.0.0.1", [401, 401, 401])])
def test_an_address_that_a_client_claims_counts_from_trusted_proxies_only(
    settings: Settings, tmp_path: Path, trusted: str, statuses: list[int]
) -> None:
    assert settings.redis_url is not None
    variables = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage, "DFKD_TRUSTED_PROXIES": trusted}
    limit = {"DFKD_API_KEYS": f"alice:{KEYS['alice']}", "DFKD_MAX_KEYLESS_REQUESTS_PER_SECOND": "0.001"}
    with running(tmp_path / "log", "/healthz", **variables, **limit) as url:
        found = [
            httpx.get(f"{url}/jobs", headers={"X-Forwarded-For": f"192.0.2.{n}"}, trust_env=False).status_code
            for n in range(3)
        ]
    assert found == statuses


@pytest.fixture
def url(settings: Settings, tmp_path: Path) -> Iterator[str]:
    assert settings.redis_url is not None
    variables = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage}
    listed = ",".join(f"{name}:{key}" for name, key in KEYS.items())
    # So low that the speed of this machine does not matter.
    limit = {"DFKD_API_KEYS": listed, "DFKD_MAX_REQUESTS_PER_SECOND": "0.001"}
    with running(tmp_path / "log", "/healthz", **variables, **limit) as url:
        yield url


def test_a_served_process_limits_over_many_connections(url: str) -> None:
    statuses = [httpx.get(f"{url}/presets", headers=bearer("alice"), trust_env=False).status_code for _ in range(3)]
    assert statuses == [200, 429, 429]
    assert httpx.get(f"{url}/presets", headers=bearer("bob"), trust_env=False).status_code == 200
