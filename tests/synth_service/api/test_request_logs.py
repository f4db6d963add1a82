"""Log lines of requests: one for each that changes or refuses something, none for polls, and never a query string."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient
from structlog.testing import LogCapture
from structlog.typing import EventDict

from shared.jobs import JobRecord
from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.request_logs import REFUSALS_AT_ONCE
from tests.synth_service.api.keys import bearer, with_keys


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    """Everything that is logged while the test runs."""
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.configure(processors=before)


def test_a_request_that_changes_something_is_logged(
    client: TestClient, written: dict[str, Any], lines: list[EventDict]
) -> None:
    answer = client.post("/jobs?api_key=secret", json=written, headers={"X-Request-Id": "my-1"})
    assert answer.headers["X-Request-Id"] == "my-1"
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"], line["request"]) == ("POST", "/jobs", 202, "my-1")
    assert line["log_level"] == "info"
    assert line["ms"] > 0
    assert "secret" not in str(lines)


def test_polls_are_not_logged(client: TestClient, job: JobRecord, lines: list[EventDict]) -> None:
    answer = client.get(f"/jobs/{job.id}")
    assert len(answer.headers["X-Request-Id"]) == 16
    client.get(f"/jobs/{job.id}", headers={"If-None-Match": answer.headers["ETag"]})
    assert lines == []


def test_polls_are_logged_at_level_debug(settings: Settings, job: JobRecord, lines: list[EventDict]) -> None:
    app: FastAPI = create_app(settings.model_copy(update={"log_level": "debug"}))
    with TestClient(app) as client:
        client.get(f"/jobs/{job.id}")
    assert [(line["log_level"], line["status"]) for line in lines if line["event"] == "request"] == [("debug", 200)]


def test_a_refusal_is_logged_without_room_for_forged_lines(client: TestClient, lines: list[EventDict]) -> None:
    client.get("/jobs/a%0Alevel=info%20event=forged?key=secret")
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["status"] == 404 or line["status"] == 422
    assert "\n" not in line["path"]
    assert "secret" not in str(line)


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "ü"])
def test_an_odd_request_id_is_replaced(client: TestClient, request_id: str) -> None:
    answer = client.get("/healthz", headers={b"X-Request-Id": request_id.encode()})
    assert len(answer.headers["X-Request-Id"]) == 16


def test_refusals_of_strangers_are_counted_when_there_are_many(settings: Settings, lines: list[EventDict]) -> None:
    with TestClient(create_app(with_keys(settings, max_keyless_requests_per_second=0))) as client:
        for _ in range(REFUSALS_AT_ONCE + 200):
            assert client.get("/jobs").status_code == 401
        logged = [line for line in lines if line["event"] == "request"]
        assert len(logged) < REFUSALS_AT_ONCE + 100  # one a second more, however slow this machine is
        client.post("/jobs", json={}, headers=bearer("alice"))
    assert lines[-1]["refusals_not_logged"] + len(logged) >= REFUSALS_AT_ONCE + 200
