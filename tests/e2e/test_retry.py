"""Failed and cancelled jobs that are retried: they go on from what they have and end as if nothing had been."""

from __future__ import annotations

import io
import signal
import tarfile
from typing import Any

import pytest

from shared.jobs import Role, State, Task
from shared.storage import job_paths
from tests.e2e.service import Service
from tests.e2e.test_jobs import assert_dataset_is_whole, assert_student_is_the_one_measured
from tests.e2e.test_resume import wait_for_shards

pytestmark = pytest.mark.e2e


def test_a_cancelled_job_goes_on_where_it_was(service: Service, digits: dict[str, Any]) -> None:
    digits["synthesis"] |= {"num_images": 1024, "partitions": 2}
    job_id = service.submit(digits)
    wait_for_shards(service, job_id, 3)
    assert service.client.post(f"/jobs/{job_id}/retry").json()["code"] == "job_unfinished"
    service.client.post(f"/jobs/{job_id}/cancel").raise_for_status()
    assert service.wait_until_final(job_id, timeout=30).state is State.CANCELLED
    before = service.broker.shards.manifests(job_id)
    assert len(before) < 16

    answers = [service.client.post(f"/jobs/{job_id}/retry") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 409]
    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert record.retries == 1
    made = service.broker.shards.manifests(job_id)
    assert made[: len(before)] == before
    for partition in range(2):
        numbers = [
            number
            for manifest in made
            if manifest.partition == partition
            for number in range(manifest.first_image, manifest.first_image + manifest.images)
        ]
        assert sorted(numbers) == list(range(512))
    assert_student_is_the_one_measured(service, job_id)
    assert service.storage.list(job_paths.work(job_id)) == []
    assert len(service.storage.list(job_paths.previews(job_id))) == 2
    assert service.client.get(f"/jobs/{job_id}/preview.png").headers["content-type"] == "image/png"
    assert service.client.post(f"/jobs/{job_id}/retry").json()["code"] == "job_succeeded"


def test_a_job_whose_checkpoint_was_missing_succeeds_once_it_is_there(service: Service, digits: dict[str, Any]) -> None:
    digits["distillation"]["export"] = ["torchscript"]
    name = digits["teacher"]["checkpoint"]
    weights = service.storage.read_bytes(name)
    for worker in ("synthesis", "distiller"):
        service.processes[worker].send_signal(signal.SIGSTOP)
    try:
        job_id = service.submit(digits)
        service.storage.delete(name)
    finally:
        for worker in ("synthesis", "distiller"):
            service.processes[worker].send_signal(signal.SIGCONT)
    failed = service.wait_until_final(job_id)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (State.FAILED, "checkpoint_not_found")

    service.storage.put_bytes(weights, name)
    again = service.client.post(f"/jobs/{job_id}/retry").raise_for_status().json()
    assert (again["state"] in ("queued", "running"), again["error"]) == (True, None)
    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert_dataset_is_whole(service, job_id, images=512)
    program = service.client.get(f"/jobs/{job_id}/student?format=torchscript").raise_for_status().content
    archive = service.client.get(f"/jobs/{job_id}/archive").raise_for_status().content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(f"{job_id}/student.torchscript.pt")
        assert member is not None
        assert member.read() == program
    assert service.broker.checkpoints.pointer(job_id, Task(Role.SYNTHESIS)) is not None
