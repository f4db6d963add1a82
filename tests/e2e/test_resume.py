"""Killed, frozen and stopped workers: the job goes on where its last sealed shard or checkpoint ended."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from shared.broker import jobs as broker_jobs
from shared.jobs import Role, State, Task
from shared.specs import JobSpec
from shared.storage import job_paths
from tests.e2e.service import Service
from tests.e2e.test_jobs import assert_dataset_is_whole
from tests.waiting import assert_within, exit_code, wait_until

pytestmark = pytest.mark.e2e

LEASE_SECONDS = 5.0
MODULES = {"synthesis": "synth_service.worker", "distiller": "distiller.worker"}
PINNED = "job-0123456789abcdef0123"


def kill(service: Service, name: str) -> None:
    """SIGKILL, and a new process in its place."""
    process = service.processes[name]
    process.kill()
    process.wait()
    service.start(name, MODULES[name])


def wait_for_shards(service: Service, job_id: str, shards: int) -> None:
    """Returns as soon as the job has this many."""
    wait_until(lambda: len(service.broker.shards.manifests(job_id)) >= shards, timeout=60)


def types(service: Service, job_id: str) -> list[str]:
    return [event.type for event in service.events(job_id)]


def lockstep(digits: dict[str, Any]) -> dict[str, Any]:
    digits["distillation"] = {
        **{name: value for name, value in digits["distillation"].items() if name not in ("steps", "full_pool_share")},
        "pacing": "lockstep",
        "steps_per_batch": 12,
        "warmup_batches": 1,
    }
    return digits


def everything(service: Service, job_id: str) -> dict[str, bytes]:
    """Content of the student and of every shard, by partition and index: a file's name also holds the attempt."""
    manifests = service.broker.shards.manifests(job_id)
    folder = job_paths.shards(job_id)
    made = {f"{m.partition}/{m.index}": service.storage.read_bytes(f"{folder}/{m.name}") for m in manifests}
    return {**made, "student": service.storage.read_bytes(job_paths.student(job_id))}


def test_a_killed_and_resumed_lockstep_job_gives_the_same_bytes_as_one_left_alone(
    service: Service, digits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys hold the job's id, so both jobs get the same one, one after the other."""
    monkeypatch.setattr(broker_jobs, "new_job_id", lambda: PINNED)
    spec = JobSpec.model_validate(lockstep(digits))

    service.broker.jobs.create(spec)
    assert service.wait_until_final(PINNED).state is State.SUCCEEDED
    left_alone = everything(service, PINNED)
    assert service.client.delete(f"/jobs/{PINNED}").status_code == 204
    assert service.storage.list(job_paths.folder(PINNED)) == []

    service.broker.jobs.create(spec)
    wait_for_shards(service, PINNED, 2)
    kill(service, "synthesis")
    wait_for_shards(service, PINNED, 4)
    kill(service, "distiller")
    wait_for_shards(service, PINNED, 6)
    service.processes["distiller"].terminate()
    assert exit_code(service.processes["distiller"], timeout=10) == 0
    service.start("distiller", MODULES["distiller"])
    record = service.wait_until_final(PINNED)

    assert record.state is State.SUCCEEDED, record.error
    assert types(service, PINNED).count("attempt_lost") == 2
    assert types(service, PINNED).count("attempt_released") == 1
    assert everything(service, PINNED) == left_alone


def test_sigterm_leaves_a_checkpoint_gives_the_task_back_and_exits_with_0(
    service: Service, digits: dict[str, Any]
) -> None:
    digits["distillation"]["steps"] = 100_000
    digits["evaluation"]["every_steps"] = 10_000
    job_id = service.submit(digits)
    service.wait_for(
        job_id, lambda record: bool(record.stages.distillation and record.stages.distillation.progress.done)
    )

    service.processes["distiller"].terminate()
    assert exit_code(service.processes["distiller"], timeout=10) == 0
    # Synthesis goes on meanwhile, and how far it is depends on the machine: its events may come after this one.
    released = [event for event in service.events(job_id) if event.type == "attempt_released"]
    assert [event.data["reason"] for event in released] == ["worker stopping"]
    pointer = service.broker.checkpoints.pointer(job_id, Task(Role.DISTILLATION))
    assert pointer is not None
    assert pointer["step"] > 0

    service.start("distiller", MODULES["distiller"])
    wait_until(lambda: types(service, job_id).count("attempt_started") >= 3, timeout=20)
    service.client.post(f"/jobs/{job_id}/cancel")
    assert service.wait_until_final(job_id, timeout=15).state is State.CANCELLED


def test_a_frozen_worker_is_replaced_within_the_lease_plus_5_seconds_and_refused_when_it_wakes(
    service: Service, digits: dict[str, Any]
) -> None:
    digits["synthesis"]["num_images"] = 20_000
    job_id = service.submit(digits)
    service.start("synthesis-2", MODULES["synthesis"])
    wait_for_shards(service, job_id, 2)
    holder = synthesis_worker_of(service, job_id)

    frozen_at = time.time()
    service.processes[holder].send_signal(signal.SIGSTOP)
    wait_until(lambda: "attempt_lost" in types(service, job_id), timeout=LEASE_SECONDS + 10)
    took_over = next(event for event in service.events(job_id) if event.type == "attempt_lost")
    assert_within(took_over.at - frozen_at, LEASE_SECONDS + 5)
    before = len(service.broker.shards.manifests(job_id))
    service.processes[holder].send_signal(signal.SIGCONT)
    wait_for_shards(service, job_id, before + 10)

    manifests = service.broker.shards.manifests(job_id)
    attempts = [manifest.attempt for manifest in manifests]
    assert attempts == sorted(attempts)
    assert set(attempts) == {1, 2}
    assert [manifest.index for manifest in manifests] == list(range(len(manifests)))
    service.client.post(f"/jobs/{job_id}/cancel")
    assert service.wait_until_final(job_id, timeout=10).state is State.CANCELLED
    service.processes["synthesis-2"].terminate()
    assert exit_code(service.processes["synthesis-2"], timeout=10) == 0


def synthesis_worker_of(service: Service, job_id: str) -> str:
    """Name of the process that works on the job's synthesis."""
    stage = service.record(job_id).stages.synthesis
    assert stage is not None
    assert stage.worker is not None
    return next(name for name, process in service.processes.items() if stage.worker.endswith(f"-{process.pid}"))


def test_a_lost_checkpoint_costs_time_and_not_the_job(service: Service, digits: dict[str, Any]) -> None:
    digits["synthesis"]["num_images"] = 2048  # more than are made before the kill on any machine
    job_id = service.submit(digits)
    wait_for_shards(service, job_id, 2)
    holder = synthesis_worker_of(service, job_id)
    service.processes[holder].kill()
    service.processes[holder].wait()
    service.storage.delete_tree(job_paths.work(job_id))
    service.start(holder, MODULES["synthesis"])

    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert "checkpoint_lost" in types(service, job_id)
    assert_dataset_is_whole(service, job_id, images=2048)
