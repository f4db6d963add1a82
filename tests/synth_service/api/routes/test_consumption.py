"""What another program says of the shards that it has used up."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.specs import JobSpec
from shared.storage import Storage
from tests.synth_service.api.conftest import announce, claim
from tests.synth_service.api.test_problems import problem


@pytest.fixture
def external(broker: Broker, written: dict[str, Any]) -> JobRecord:
    """A job on whose images another program trains."""
    spec = {name: part for name, part in written.items() if name != "student"}
    return broker.jobs.create(JobSpec.model_validate(spec | {"distillation": "external"}))


def test_a_program_says_how_far_it_is_and_cannot_take_it_back(
    client: TestClient, broker: Broker, storage: Storage, external: JobRecord
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    for index in range(2):
        announce(broker, storage, attempt, index)
    path = f"/jobs/{external.id}/shards"
    first, second = (shard["id"] for shard in client.get(path).json()["data"])
    for until, known, shards in ((first, first, 1), (second, second, 2), (first, second, 2), (second, second, 2)):
        answer = client.post(f"/jobs/{external.id}/consumed", json={"until": until})
        assert answer.status_code == 200
        assert answer.json() == {"until": known, "shards_consumed": shards, "shards": 2}
    stage = client.get(f"/jobs/{external.id}").json()["stages"]["synthesis"]
    assert (stage["shards_consumed"], stage["consumed_until"]) == (2, second)


def test_an_id_behind_the_newest_shard_stands_for_that_one(
    client: TestClient, broker: Broker, storage: Storage, external: JobRecord
) -> None:
    announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    answer = client.post(f"/jobs/{external.id}/consumed", json={"until": "9" * 19 + "-" + "9" * 19})
    assert answer.json()["shards_consumed"] == 1


@pytest.mark.parametrize("body", [{}, {"until": "x"}, {"until": "1-2-3"}, {"until": 5}, {"until": "1-1", "also": 1}])
def test_what_is_no_id_is_refused(client: TestClient, external: JobRecord, body: dict[str, Any]) -> None:
    problem(client.post(f"/jobs/{external.id}/consumed", json=body), 422, "invalid_request")


def test_other_jobs_wait_for_nobody(client: TestClient, job: JobRecord) -> None:
    problem(client.post(f"/jobs/{job.id}/consumed", json={"until": "1-1"}), 409, "not_external")
    missing = f"/jobs/job-{'0' * 20}/consumed"
    problem(client.post(missing, json={"until": "1-1"}), 404, "job_not_found")
    stages = client.get(f"/jobs/{job.id}").json()["stages"]
    assert (stages["synthesis"]["shards_consumed"], stages["synthesis"]["consumed_until"]) == (None, None)


def test_external_is_accepted_as_the_job_file_says(client: TestClient, written: dict[str, Any]) -> None:
    spec = {name: part for name, part in written.items() if name != "student"} | {"distillation": "external"}
    accepted = client.post("/jobs", json=spec)
    assert accepted.status_code == 202
    assert (accepted.json()["spec"]["distillation"], accepted.json()["spec"]["external"]) == (None, True)
    assert accepted.json()["stages"]["distillation"] is None
    refused = problem(
        client.post("/jobs:validate", json=written | {"distillation": "external"}), 422, "invalid_request"
    )
    assert refused.errors is not None
    assert [each.field for each in refused.errors] == ["student"]
