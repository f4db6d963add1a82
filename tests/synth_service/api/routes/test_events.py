import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.events import EventType
from shared.jobs import JobRecord, Role
from shared.storage import Storage
from tests.conftest import free_port
from tests.synth_service.api.conftest import claim, complete
from tests.synth_service.api.test_problems import problem
from tests.waiting import wait_until

SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The application behind a real socket: a test client would collect a whole stream before it shows it."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    app.state.is_stopping = True
    server.should_exit = True
    thread.join()


@contextmanager
def listening(url: str, last_event_id: str | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    headers = SSE | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    with httpx2.stream("GET", url, headers=headers, timeout=10) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def test_events_are_listed_in_pages(client: TestClient, broker: Broker, storage: Storage, job: JobRecord) -> None:
    complete(broker, storage)
    every = client.get(f"/jobs/{job.id}/events").json()
    types = [event["type"] for event in every["data"]]
    assert types[0] == "job_created"
    assert types[-1] == "job_succeeded"
    assert every["has_more"] is False
    listed: list[dict[str, Any]] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = {"after": listed[-1]["id"]} if listed else {}
        page = client.get(f"/jobs/{job.id}/events", params={"limit": 2, **after}).json()
        listed += page["data"]
    assert listed == every["data"]


def test_a_stream_of_a_finished_job_shows_everything_and_ends(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    complete(broker, storage)
    listed = client.get(f"/jobs/{job.id}/events").json()["data"]
    stream = client.get(f"/jobs/{job.id}/events", headers=SSE)
    assert [line.removeprefix("id: ") for line in stream.text.splitlines() if line.startswith("id: ")] == [
        event["id"] for event in listed
    ]
    resumed = client.get(f"/jobs/{job.id}/events", headers=SSE | {"Last-Event-ID": listed[-1]["id"]})
    assert "id:" not in resumed.text


def test_a_stream_shows_events_as_they_happen_and_ends_with_the_job(
    url: str, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    with listening(f"{url}/jobs/{job.id}/events") as events:
        assert next(events)["type"] == "job_created"
        complete(broker, storage)
        assert [event["type"] for event in events][-1] == "job_succeeded"


def test_a_listener_that_is_cut_off_again_and_again_sees_every_event_once(
    url: str, broker: Broker, job: JobRecord
) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    heard: list[dict[str, Any]] = []
    for cut in range(20):
        for number in range(3):
            broker.reports.report(attempt, EventType.EVALUATED, {"number": 3 * cut + number})
        with listening(f"{url}/jobs/{job.id}/events", heard[-1]["id"] if heard else None) as events:
            # Leaves one or two events unread each time, some of which are on their way already.
            heard += [next(events) for _ in range(1 + cut % 3)]
    broker.jobs.cancel(job.id)
    broker.leases.release(attempt, "stopped")
    with listening(f"{url}/jobs/{job.id}/events", heard[-1]["id"]) as events:
        heard += events
    assert [event["id"] for event in heard] == [event.id for event in broker.reports.events(job.id)]
    assert [event["data"]["number"] for event in heard if event["type"] == "evaluated"] == list(range(60))


def test_a_stream_ends_when_the_service_stops(url: str, app: FastAPI, job: JobRecord) -> None:
    with listening(f"{url}/jobs/{job.id}/events") as events:
        next(events)
        app.state.is_stopping = True
        assert list(events) == []


@pytest.mark.parametrize(
    ("headers", "query", "field"),
    [
        (SSE | {"Last-Event-ID": "x"}, "", "last-event-id"),
        ({}, "?after=x", "after"),
        ({}, "?after=99999999999999999999-0", "after"),
        ({}, "?limit=0", "limit"),
    ],
)
def test_a_malformed_position_is_refused(
    client: TestClient, job: JobRecord, headers: dict[str, str], query: str, field: str
) -> None:
    found = problem(client.get(f"/jobs/{job.id}/events{query}", headers=headers), 422, "invalid_request")
    assert found.errors is not None
    assert found.errors[0].field.lower() == field


def test_the_largest_position_is_the_end(client: TestClient, job: JobRecord) -> None:
    assert client.get(f"/jobs/{job.id}/events?after=9999999999999999999-9999999999999999999").json()["data"] == []


def test_a_stream_goes_on_over_the_end_of_a_job_that_was_retried(url: str, broker: Broker, job: JobRecord) -> None:
    broker.jobs.cancel(job.id)
    broker.jobs.retry(job.id)
    with listening(f"{url}/jobs/{job.id}/events") as events:
        types = [next(events)["type"] for _ in range(4)]
        assert types == ["job_created", "cancel_requested", "job_cancelled", "job_retried"]
        broker.jobs.cancel(job.id)
        assert [event["type"] for event in events] == ["cancel_requested", "job_cancelled"]
