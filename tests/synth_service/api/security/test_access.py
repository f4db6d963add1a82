"""The copy of the keys that one API process keeps."""

import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.broker.access import Access, AccessList
from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.security.access import PATIENCE_SECONDS, Keyring
from tests.synth_service.api.keys import bearer, with_keys
from tests.synth_service.api.test_problems import problem


def test_the_first_copy_is_waited_for_and_not_the_later_ones(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(with_keys(settings))
    keyring: Keyring = app.state.keyring
    (alice,) = (key for key in keyring.all() if key.name == "alice")
    app.state.broker.access.revoke_key(alice.fingerprint)
    read = Access.read

    def read_slowly(access: Access) -> AccessList:
        time.sleep(3 * PATIENCE_SECONDS)
        return read(access)

    monkeypatch.setattr(Access, "read", read_slowly)
    with TestClient(app) as client:
        problem(client.get("/jobs", headers=bearer("alice")), 401, "api_key_invalid")
        assert client.get("/jobs", headers=bearer("bob")).status_code == 200


def test_a_process_that_never_heard_of_the_keys_lets_nobody_in(settings: Settings) -> None:
    away = with_keys(settings, redis_url="redis://127.0.0.1:1")
    with TestClient(create_app(away)) as client:
        assert "keys" in problem(client.get("/architectures", headers=bearer("alice")), 503, "redis_unavailable").detail
        problem(client.post("/ui/sign-in", data={"key": "guess"}), 503, "redis_unavailable")
        assert client.get("/healthz").status_code == 200


def test_a_slow_reader_does_not_bring_an_ended_sign_in_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(with_keys(settings))
    keyring: Keyring = app.state.keyring
    (alice, _) = keyring.all()
    read = Access.read
    has_read, may_go_on = threading.Event(), threading.Event()

    def read_and_dawdle(access: Access) -> Any:
        known = read(access)
        if not has_read.is_set():
            has_read.set()
            may_go_on.wait(10)
        return known

    monkeypatch.setattr(Access, "read", read_and_dawdle)
    slow = threading.Thread(target=keyring.renew_now)
    slow.start()
    assert has_read.wait(10)
    revoking = threading.Thread(target=keyring.revoke, args=[alice.fingerprint])
    revoking.start()
    revoking.join(0.5)
    may_go_on.set()
    slow.join(10)
    revoking.join(10)
    assert alice not in keyring.all()
