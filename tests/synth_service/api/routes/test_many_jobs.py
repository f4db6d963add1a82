"""Two hundred jobs at once: queued, listed, filtered and cancelled, in a number of round trips that does not grow."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.settings import Settings
from synth_service.api.app import create_app

JOBS = 200


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"max_queued_jobs": JOBS}))) as client:
        yield client


def reads_for(broker: Broker, action: Callable[[], object]) -> int:
    """How often the server had to read from a connection: a round trip, whatever it carries, is one read or two."""
    before = int(broker.redis.info("stats")["total_reads_processed"])
    action()
    return int(broker.redis.info("stats")["total_reads_processed"]) - before


def all_ids(client: TestClient, **query: str | int) -> list[str]:
    ids: list[str] = []
    page: dict[str, Any] = {"has_more": True, "data": []}
    while page["has_more"]:
        after = {"after": ids[-1]} if ids else {}
        page = client.get("/jobs", params={"limit": 100, **query, **after}).json()
        ids += [job["id"] for job in page["data"]]
    return ids


def test_two_hundred_jobs_are_queued_listed_filtered_and_cancelled(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    queued = [client.post("/jobs", json={**written, "name": f"job {number:03}"}).json()["id"] for number in range(JOBS)]
    refused = client.post("/jobs", json=written)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert "retry-after" in refused.headers

    assert all_ids(client) == queued[::-1]
    assert all_ids(client, status="queued") == queued[::-1]
    assert all_ids(client, status="running") == []
    assert all_ids(client, name="JOB 19") == queued[:189:-1]

    odd = queued[1::2]
    assert {client.post(f"/jobs/{job_id}/cancel").status_code for job_id in odd} == {202}
    assert all_ids(client, status="cancelled") == odd[::-1]
    assert all_ids(client, status="queued") == queued[0::2][::-1]
    assert client.post(f"/jobs/{odd[0]}/cancel").status_code == 409


def test_a_page_takes_as_many_round_trips_with_two_hundred_jobs_as_with_two(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    def page() -> object:
        return client.get("/jobs", params={"limit": 100}).json()["data"]

    for _ in range(2):
        client.post("/jobs", json=written)
    page()
    few = reads_for(broker, page)
    for _ in range(JOBS - 2):
        client.post("/jobs", json=written)
    # A pipeline of a hundred commands may arrive in more than one piece.
    assert reads_for(broker, page) <= few + 4
