from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.specs import JobSpec
from shared.storage import Storage, job_paths
from tests.synth_service.api.conftest import claim, complete


def test_a_job_is_accepted_with_its_location_and_its_resolved_spec(client: TestClient, written: dict[str, Any]) -> None:
    response = client.post("/jobs", json=written)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["stages"]["synthesis"]["progress"]["total"] == 8
    assert job["spec"]["synthesis"]["preset"] == "fast-5"
    assert client.get(response.headers["location"]).json() == job


def test_a_job_that_was_accepted_can_be_claimed(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    job_id = client.post("/jobs", json=written).json()["id"]
    assert claim(broker, Role.SYNTHESIS).job_id == job_id
    assert client.get(f"/jobs/{job_id}").json()["state"] == "running"


def test_a_live_job_says_when_to_ask_again_and_a_finished_one_does_not(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    assert client.get(f"/jobs/{job.id}").headers["retry-after"] == "1"
    complete(broker, storage)
    finished = client.get(f"/jobs/{job.id}")
    assert finished.json()["state"] == "succeeded"
    assert finished.json()["result"] == {"images": 8}
    assert "retry-after" not in finished.headers


def test_a_poll_of_an_unchanged_job_is_304_until_it_changes(client: TestClient, broker: Broker, job: JobRecord) -> None:
    etag = client.get(f"/jobs/{job.id}").headers["etag"]
    again = client.get(f"/jobs/{job.id}", headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert again.headers["retry-after"] == "1"
    claim(broker, Role.SYNTHESIS)
    assert client.get(f"/jobs/{job.id}", headers={"If-None-Match": etag}).status_code == 200


def test_a_poll_is_one_round_trip(client: TestClient, broker: Broker, job: JobRecord) -> None:
    def commands() -> int:
        return sum(
            each["calls"]
            for name, each in broker.redis.info("commandstats").items()
            if name.removeprefix("cmdstat_") not in ("info", "config|resetstat")
        )

    client.get(f"/jobs/{job.id}")  # connects
    broker.redis.config_resetstat()
    client.get(f"/jobs/{job.id}")
    assert commands() == 1


def test_pages_of_jobs_follow_each_other_newest_first(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    made = [broker.jobs.create(JobSpec.model_validate(written)).id for _ in range(5)]
    listed: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        page = client.get("/jobs", params={"limit": 2, **({"after": listed[-1]} if listed else {})}).json()
        listed += [job["id"] for job in page["data"]]
    assert listed == sorted(made, reverse=True)


def test_jobs_are_filtered_by_status_and_name(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    first = broker.jobs.create(JobSpec.model_validate(written | {"name": "First"}))
    second = broker.jobs.create(JobSpec.model_validate(written | {"name": "second"}))
    broker.jobs.cancel(second.id)

    def ids(**query: str) -> list[str]:
        return [job["id"] for job in client.get("/jobs", params=query).json()["data"]]

    assert ids(status="cancelled") == [second.id]
    assert ids(status="queued") == [first.id]
    assert ids(name="FIRS") == [first.id]
    assert ids(name="first", status="cancelled") == []


def test_cancelling_ends_a_queued_job_at_once_and_a_running_one_when_its_worker_stops(
    client: TestClient, broker: Broker, job: JobRecord
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    response = client.post(f"/jobs/{job.id}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelling")
    assert client.post(f"/jobs/{job.id}/cancel").status_code == 202
    broker.leases.release(attempt, "job stopped")
    assert client.get(f"/jobs/{job.id}").json()["state"] == "cancelled"
    refused = client.post(f"/jobs/{job.id}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_finished")


def test_a_cancelled_job_is_retried_once_and_a_finished_one_not_at_all(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    unfinished = client.post(f"/jobs/{job.id}/retry")
    assert (unfinished.status_code, unfinished.json()["code"]) == (409, "job_unfinished")
    client.post(f"/jobs/{job.id}/cancel")
    response = client.post(f"/jobs/{job.id}/retry")
    assert (response.status_code, response.json()["state"], response.json()["retries"]) == (202, "queued", 1)
    assert response.headers["location"] == f"/jobs/{job.id}"
    assert client.post(f"/jobs/{job.id}/retry").status_code == 409
    complete(broker, storage)
    refused = client.post(f"/jobs/{job.id}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_succeeded")


def test_deleting_removes_an_ended_job_and_its_files_and_nothing_before_that(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    refused = client.delete(f"/jobs/{job.id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_unfinished")
    storage.put_bytes(b"shard", f"{job_paths.shards(job.id)}/shard.tar")
    client.post(f"/jobs/{job.id}/cancel")
    assert client.delete(f"/jobs/{job.id}").status_code == 409
    broker.leases.release(attempt, "job stopped")

    response = client.delete(f"/jobs/{job.id}")

    assert (response.status_code, response.content) == (204, b"")
    assert client.get(f"/jobs/{job.id}").status_code == 404
    assert client.get("/jobs").json()["data"] == []
    assert storage.list("jobs") == []
    assert client.delete(f"/jobs/{job.id}").status_code == 404


@pytest.mark.parametrize(
    "call",
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events"), ("GET", "/student")],
)
def test_a_job_that_does_not_exist_is_404(client: TestClient, call: tuple[str, str]) -> None:
    method, path = call
    response = client.request(method, f"/jobs/job-{'0' * 20}{path}")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_the_same_idempotency_key_gives_the_same_job_and_refuses_another(
    client: TestClient, written: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/jobs", json=written, headers=headers)
    # What counts is what was asked for: the order of the fields does not.
    again = client.post("/jobs", json=dict(reversed(written.items())), headers=headers)
    assert again.status_code == 202
    assert again.json() == first.json()
    assert len(client.get("/jobs").json()["data"]) == 1
    other = client.post("/jobs", json=written | {"seed": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    assert client.post("/jobs", json=written).json()["id"] != first.json()["id"]


def test_a_full_queue_is_429_until_a_job_ends(client: TestClient, written: dict[str, Any]) -> None:
    jobs = [client.post("/jobs", json=written, headers={"Idempotency-Key": str(n)}).json() for n in range(5)]
    refused = client.post("/jobs", json=written)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    # A repeated request makes no new job, so a full queue does not refuse it.
    assert client.post("/jobs", json=written, headers={"Idempotency-Key": "0"}).json()["id"] == jobs[0]["id"]
    client.post(f"/jobs/{jobs[0]['id']}/cancel")
    assert client.post("/jobs", json=written).status_code == 202
