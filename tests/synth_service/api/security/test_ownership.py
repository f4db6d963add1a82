"""Files of jobs and models where callers have their own jobs only (DFKD_OWN_JOBS_ONLY)."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.settings import Settings
from shared.storage import Storage, job_paths
from synth_service.api.app import create_app
from synth_service.api.security.ownership import MAX_FOLDERS
from tests.synth_service.api.conftest import complete
from tests.synth_service.api.keys import bearer, with_keys
from tests.synth_service.api.test_problems import problem

UNKNOWN_JOB = "job-" + "0" * 20


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(with_keys(settings, own_jobs_only=True))) as client:
        yield client


@pytest.fixture
def alices(client: TestClient, written: dict[str, Any], broker: Broker, storage: Storage) -> str:
    """A finished job of Alice."""
    job: str = client.post("/jobs", json=written, headers=bearer("alice")).json()["id"]
    complete(broker, storage)
    storage.put_bytes(b"weights", job_paths.student(job))
    return job


def distilling(written: dict[str, Any], shards: str) -> dict[str, Any]:
    """A job that distils from existing shards."""
    changed: dict[str, Any] = json.loads(json.dumps(written))
    del changed["synthesis"]
    del changed["distillation"]["warmup_batches"]
    return changed | {"shards": shards}


def naming(written: dict[str, Any], job: str, shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every way to name a file of a job, with the field that does."""
    student, teacher = dict(written["student"]), dict(written["teacher"])
    path = job_paths.student(job)
    yield "teacher.checkpoint", written | {"teacher": teacher | {"checkpoint": path}}
    yield "student.checkpoint", written | {"student": student | {"checkpoint": path}}
    yield "evaluation.shards", written | {"evaluation": {"shards": shard}}
    yield "shards", distilling(written, shard)
    yield "shards", distilling(written, shard.replace("jobs/", "{jobs,jobs}/"))


def a_shard(storage: Storage, job: str) -> str:
    return next(name for name in storage.list(job_paths.shards(job)) if name.endswith(".tar"))


@pytest.mark.parametrize("path", ["/jobs", "/jobs:validate"])
def test_the_files_of_others_cannot_be_named(
    client: TestClient, written: dict[str, Any], alices: str, storage: Storage, path: str
) -> None:
    shard = a_shard(storage, alices)
    for field, body in naming(written, alices, shard):
        refused = client.post(path, json=body, headers=bearer("bob"))
        found = problem(refused, 422, "not_found_in_storage")
        assert [error.field for error in found.errors or []] == [field]
        # Nobody learns which jobs there are.
        text = json.dumps(body).replace(alices, UNKNOWN_JOB)
        unknown = client.post(path, content=text, headers={**bearer("bob"), "Content-Type": "application/json"})
        assert unknown.text == refused.text.replace(alices, UNKNOWN_JOB)
    assert client.get("/jobs", headers=bearer("bob")).json()["data"] == []


def test_own_files_can_be_named(client: TestClient, written: dict[str, Any], alices: str, storage: Storage) -> None:
    for _, body in naming(written, alices, a_shard(storage, alices)):
        assert client.post("/jobs:validate", json=body, headers=bearer("alice")).status_code == 200


@pytest.mark.parametrize("folder", ["jobs/x", "JOBS/{job}", "jobs/{job}:shards", "jobs", "models/{job}"])
def test_odd_paths_into_the_folders_of_jobs_are_refused(
    client: TestClient, written: dict[str, Any], alices: str, folder: str
) -> None:
    written["teacher"]["checkpoint"] = f"{folder.replace('{job}', alices)}/student.safetensors"
    refused = client.post("/jobs", json=written, headers=bearer("bob"))
    problem(refused, 422, "not_found_in_storage")


def test_a_pattern_over_very_many_jobs_is_refused_without_looking_at_each(
    client: TestClient, written: dict[str, Any], broker: Broker
) -> None:
    before = int(broker.redis.info("stats")["total_commands_processed"])
    body = distilling(written, "jobs/job-0000000000000000{0000..9999}/x.tar")
    problem(client.post("/jobs", json=body, headers=bearer("bob")), 422, "not_found_in_storage")
    assert int(broker.redis.info("stats")["total_commands_processed"]) - before < MAX_FOLDERS


def test_the_models_of_others_do_not_exist(client: TestClient, written: dict[str, Any], storage: Storage) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    query = {"filename": "mine.safetensors"}
    model = client.post("/models", params=query, content=content, headers=bearer("alice")).json()
    assert model["owner"] == "alice"
    (path,) = [name for name in storage.list("models") if name.endswith("mine.safetensors")]
    bob = bearer("bob")
    assert client.get("/models", headers=bob).json()["data"] == []
    problem(client.get(f"/models/{model['id']}", headers=bob), 404, "model_not_found")
    problem(client.delete(f"/models/{model['id']}", headers=bob), 404, "model_not_found")
    for name, code in ((model["id"], "model_not_found"), (path, "not_found_in_storage")):
        written["teacher"]["checkpoint"] = name
        problem(client.post("/jobs", json=written, headers=bob), 422, code)
        assert client.post("/jobs:validate", json=written, headers=bearer("alice")).status_code == 200
    assert client.get(f"/models/{model['id']}", headers=bearer("alice")).status_code == 200
