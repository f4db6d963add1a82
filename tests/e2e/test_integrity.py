"""Shards that are not what they were: found, told, quarantined and made again, so that the promised number stands."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.jobs import JobRecord, State
from shared.storage import Storage, job_paths
from tests.e2e.service import Service
from tests.e2e.test_jobs import assert_dataset_is_whole
from tests.e2e.test_resume import types, wait_for_shards

pytestmark = pytest.mark.e2e

MOST_DAMAGED = 4


@pytest.fixture(scope="module")
def service(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that puts up with a few damaged shards."""
    folder = tmp_path_factory.mktemp("service")
    limits = {"DFKD_MAX_DAMAGED_SHARDS": str(MOST_DAMAGED)}
    service = Service(redis_server, Storage(str(folder / "storage")), folder / "logs", limits)
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


def truncate_at_a_member_boundary(path: Path) -> None:
    """What is left reads as a valid, shorter tar."""
    with path.open("r+b") as file:
        file.truncate(6 * 512)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def paths(service: Service, job_id: str) -> list[Path]:
    found = [
        service.storage.local_path(f"{job_paths.shards(job_id)}/{manifest.name}")
        for manifest in service.broker.shards.manifests(job_id)
    ]
    return [path for path in found if path is not None]


def reasons(service: Service, job_id: str) -> list[Any]:
    return [event.data["reason"] for event in service.events(job_id) if event.type == "shard_damaged"]


def submit_with_frozen_distiller(service: Service, fields: dict[str, Any], shards: int) -> str:
    """A job whose first shards lie there and were read by nobody."""
    service.processes["distiller"].send_signal(signal.SIGSTOP)
    job_id = service.submit(fields)
    wait_for_shards(service, job_id, shards)
    return job_id


@pytest.mark.parametrize("pacing", ["free", "lockstep"])
def test_damaged_shards_are_made_again_and_the_promised_number_stands(
    service: Service, digits: dict[str, Any], pacing: str
) -> None:
    harms: list[Callable[[Path], None]] = [truncate_at_a_member_boundary, flip_a_bit, Path.unlink]
    if pacing == "lockstep":
        del digits["distillation"]["steps"], digits["distillation"]["full_pool_share"]
        digits["distillation"] |= {"pacing": "lockstep", "steps_per_batch": 5}
        harms = harms[:1]  # synthesis makes one shard and waits
    job_id = submit_with_frozen_distiller(service, digits, len(harms))
    for harm, path in zip(harms, paths(service, job_id), strict=False):
        harm(path)
    service.processes["distiller"].send_signal(signal.SIGCONT)

    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert reasons(service, job_id) == ["wrong_size", "wrong_sha256", "missing"][: len(harms)]
    assert_dataset_is_whole(service, job_id, images=512)
    assert record.stages.distillation is not None
    assert record.stages.synthesis is not None
    assert record.stages.distillation.shards_consumed == record.stages.synthesis.shards == 8


def test_too_many_damaged_shards_fail_the_job(service: Service, digits: dict[str, Any]) -> None:
    job_id = submit_with_frozen_distiller(service, digits, MOST_DAMAGED + 1)
    for path in paths(service, job_id)[: MOST_DAMAGED + 1]:
        flip_a_bit(path)
    service.processes["distiller"].send_signal(signal.SIGCONT)

    record = service.wait_until_final(job_id)

    assert (record.state, record.error and record.error.code) == (State.FAILED, "too_many_damaged_shards")
    assert len(reasons(service, job_id)) == MOST_DAMAGED + 1


def test_damage_that_no_distiller_sees_is_found_before_the_job_ends(service: Service, digits: dict[str, Any]) -> None:
    only_images = {**digits, "distillation": None, "evaluation": None, "student": None}
    job_id = service.submit(only_images)
    wait_for_shards(service, job_id, 2)
    flip_a_bit(paths(service, job_id)[0])

    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert reasons(service, job_id) == ["wrong_sha256"]
    assert_dataset_is_whole(service, job_id, images=512)


def test_damage_after_the_distiller_has_read_a_shard_is_made_good_and_the_student_stays_the_measured_one(
    service: Service, digits: dict[str, Any]
) -> None:
    digits["distillation"]["steps"] = 400
    job_id = service.submit(digits)

    def all_consumed(record: JobRecord) -> bool:
        stage = record.stages.distillation
        return stage is not None and stage.shards_consumed == 8

    service.wait_for(job_id, all_consumed)
    flip_a_bit(paths(service, job_id)[3])

    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert reasons(service, job_id) == ["wrong_sha256"]
    assert types(service, job_id).count("task_succeeded") == 3  # synthesis once more
    assert_dataset_is_whole(service, job_id, images=512)
    assert record.stages.distillation is not None
    assert record.stages.distillation.shards_consumed == 8
    assert (record.result or {})["kd_steps"] == 400
