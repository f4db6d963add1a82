from hashlib import sha256
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.specs import JobSpec
from shared.storage import Storage, StorageUnavailable, job_paths
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.api.test_problems import problem


def test_shards_are_listed_in_pages_while_the_job_runs(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    assert client.get(f"/jobs/{job.id}/shards").json() == {"data": [], "has_more": False}
    attempt = claim(broker, Role.SYNTHESIS)
    made = [announce(broker, storage, attempt, index) for index in range(2)]
    first = client.get(f"/jobs/{job.id}/shards", params={"limit": 1}).json()
    assert first["has_more"] is True
    rest = client.get(f"/jobs/{job.id}/shards", params={"after": first["data"][0]["id"]}).json()
    assert rest["has_more"] is False
    assert [shard["name"] for shard in first["data"] + rest["data"]] == [manifest.name for manifest in made]
    assert rest["data"][0]["sha256"] == made[1].sha256


def test_a_shard_is_downloaded_whole_in_part_or_not_at_all(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    content = bytes(range(256)) * 10
    manifest = announce(broker, storage, claim(broker, Role.SYNTHESIS), 0, content)
    path = f"/jobs/{job.id}/shards/{manifest.name}"
    whole = client.get(path)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["etag"] == f'"{sha256(content).hexdigest()}"'
    part = client.get(path, headers={"Range": "bytes=10-19", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, content[10:20])
    unchanged = client.get(path, headers={"If-None-Match": whole.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    beyond = client.get(path, headers={"Range": "bytes=9999-"})
    problem(beyond, 416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(content)}"
    problem(client.get(path, headers={"Range": "bytes=x"}), 400, "bad_request")


@pytest.mark.parametrize("name", ["other.tar", "..%2F..%2Fsecret.tar", "x.json", ".tar", "a" * 200 + ".tar"])
def test_only_shards_of_the_job_can_be_downloaded(client: TestClient, job: JobRecord, name: str) -> None:
    assert client.get(f"/jobs/{job.id}/shards/{name}").status_code in (404, 422)


def test_the_student_is_404_with_the_reason_until_there_is_one(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    path = f"/jobs/{job.id}/student"
    problem(client.get(path), 404, "student_not_ready")
    complete(broker, storage)
    problem(client.get(path), 404, "no_student")
    storage.put_bytes(b"weights of the student", job_paths.student(job.id))
    response = client.get(path)
    assert response.content == b"weights of the student"
    assert 'filename="student.safetensors"' in response.headers["content-disposition"]
    assert client.get(path, headers={"If-None-Match": response.headers["etag"]}).status_code == 304


def test_the_student_in_another_format_is_there_if_the_job_was_asked_for_it(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    path = f"/jobs/{job.id}/student"
    problem(client.get(path, params={"format": "onnx"}), 404, "student_not_ready")
    failed = {"exports_failed": {"torchscript": "RuntimeError: no"}}
    complete(broker, storage, result={"images": 8, **failed})
    storage.put_bytes(b"program", job_paths.exported_student(job.id, "torch-export"))
    response = client.get(path, params={"format": "torch-export"})
    assert (response.status_code, response.content) == (200, b"program")
    assert 'filename="student.pt2"' in response.headers["content-disposition"]
    missing = client.get(path, params={"format": "onnx"})
    problem(missing, 404, "format_not_exported")
    assert '"export": ["onnx"]' in missing.json()["hint"]
    impossible = client.get(path, params={"format": "torchscript"})
    problem(impossible, 404, "format_not_exported")
    assert "RuntimeError: no" in impossible.json()["detail"]
    problem(client.get(path, params={"format": "exe"}), 422, "invalid_request")


def test_a_job_without_distillation_says_that_it_has_no_student(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    spec = JobSpec.model_validate(written | {"distillation": None, "student": None})
    problem(client.get(f"/jobs/{broker.jobs.create(spec).id}/student"), 404, "job_without_student")


def test_the_picture_grid_is_served_as_a_picture(client: TestClient, storage: Storage, job: JobRecord) -> None:
    problem(client.get(f"/jobs/{job.id}/grid.png"), 404, "grid_not_found")
    storage.put_bytes(b"\x89PNG", job_paths.grid(job.id))
    response = client.get(f"/jobs/{job.id}/grid.png")
    assert (response.headers["content-type"], response.content) == ("image/png", b"\x89PNG")


def test_a_storage_that_fails_to_read_is_unavailable() -> None:
    # Reading this file gives an input/output error, as from a disk that is dying.
    with pytest.raises(StorageUnavailable, match="Input/output error"):
        Storage("/proc/self", create=False).read_bytes("mem")
