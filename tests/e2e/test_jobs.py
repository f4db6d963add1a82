"""Whole jobs over HTTP, with real processes: what users rely on, from POST /jobs to a student."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shared.jobs import Role, State
from shared.networks.building import build_network
from shared.shards.format import read_shard
from shared.storage import job_paths
from tests.e2e.networks import tiny
from tests.e2e.service import Service
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_a_job_makes_a_dataset_and_a_student(service: Service, digits: dict[str, Any]) -> None:
    job_id = service.submit(digits)

    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert record.result is not None
    assert record.result["images"] == 512
    assert record.result["kd_steps"] == 60
    assert record.measurement is not None
    assert record.measurement.step == 60
    assert record.result["student_top1"] == record.measurement.metrics["student_top1"]
    # 60 steps on 512 images are no training to speak of, yet far from chance.
    assert record.measurement.metrics["teacher_top1"] >= 0.98
    assert record.measurement.metrics["student_top1"] > 0.2
    assert_dataset_is_whole(service, job_id, images=512)
    assert_student_is_the_one_measured(service, job_id)
    assert service.storage.list(job_paths.work(job_id)) == []


def assert_dataset_is_whole(service: Service, job_id: str, *, images: int) -> None:
    """Every image number once, classes balanced, every file as its manifest says, nothing else in the folder."""
    manifests = service.broker.shards.manifests(job_id)
    numbers: list[int] = []
    targets: list[np.ndarray] = []
    for manifest in manifests:
        path = service.storage.local_path(f"{job_paths.shards(job_id)}/{manifest.name}")
        assert path is not None
        targets.append(read_shard(path, manifest).targets)
        numbers += range(manifest.first_image, manifest.first_image + manifest.images)
        counts = np.bincount(targets[-1], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert sorted(numbers) == list(range(images))
    listed = {f"{job_paths.shards(job_id)}/{name}" for m in manifests for name in (m.name, m.sidecar_name)}
    assert set(service.storage.list(job_paths.shards(job_id))) == listed


def assert_student_is_the_one_measured(service: Service, job_id: str) -> None:
    """The downloaded file loads into the student's architecture and is the stored one."""
    response = service.client.get(f"/jobs/{job_id}/student").raise_for_status()
    assert response.content == service.storage.read_bytes(job_paths.student(job_id))
    spec = service.record(job_id).parsed_spec()
    assert spec.student is not None
    network = build_network(spec.student, num_classes=10, input=spec.teacher.input)
    path = service.storage.local_path(job_paths.student(job_id))
    assert path is not None
    network.load_state_dict(load_file(path))
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def test_distillation_runs_while_synthesis_does(service: Service, digits: dict[str, Any]) -> None:
    # However slow the distiller is, synthesis cannot get further ahead of it than this.
    digits["synthesis"] |= {"num_images": 1024, "max_backlog": 2}
    job_id = service.submit(digits)
    service.wait_until_final(job_id)

    types = [event.type for event in service.events(job_id)]

    seals = [place for place, type_ in enumerate(types) if type_ == "shard_sealed"]
    trained = [place for place, type_ in enumerate(types) if type_ in ("student_published", "evaluated")]
    assert any(seals[0] < place < seals[-1] for place in trained)


def test_synthesis_runs_on_without_the_distiller_until_its_backlog_is_full(
    service: Service, digits: dict[str, Any]
) -> None:
    digits["synthesis"]["max_backlog"] = 3
    service.processes["distiller"].send_signal(signal.SIGSTOP)
    try:
        job_id = service.submit(digits)
        service.wait_for(job_id, lambda record: bool(record.stages.synthesis and record.stages.synthesis.shards == 3))
        wait_until(lambda: "synthesis_paused" in [event.type for event in service.events(job_id)])
        assert service.broker.shards.backlog(job_id).shards == 3
    finally:
        service.processes["distiller"].send_signal(signal.SIGCONT)
    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    types = [event.type for event in service.events(job_id)]
    assert types.index("synthesis_paused") < types.index("synthesis_resumed")


def test_two_jobs_at_once_and_a_dataset_only_job(service: Service, digits: dict[str, Any]) -> None:
    only_images = {**digits, "distillation": None, "evaluation": None, "student": None}
    first, second, third = service.submit(digits), service.submit({**digits, "seed": 1}), service.submit(only_images)

    records = [service.wait_until_final(job_id) for job_id in (first, second, third)]

    assert [record.state for record in records] == [State.SUCCEEDED] * 3
    assert records[2].stages.distillation is None
    assert "student" not in (records[2].result or {})
    assert_dataset_is_whole(service, third, images=512)


def test_a_job_distils_from_the_dataset_of_another(service: Service, digits: dict[str, Any]) -> None:
    only_images = {**digits, "distillation": None, "evaluation": None, "student": None}
    only_images["synthesis"] = {**digits["synthesis"], "batches_per_shard": 8}
    made = service.submit(only_images)
    service.wait_until_final(made)
    (manifest,) = service.broker.shards.manifests(made)

    distil_only = {**digits, "shards": f"{job_paths.shards(made)}/{manifest.name}"}
    del distil_only["synthesis"]
    distil_only["distillation"] = {**digits["distillation"], "warmup_batches": None}
    record = service.wait_until_final(service.submit(distil_only))

    assert record.state is State.SUCCEEDED, record.error
    assert record.stages.synthesis is None
    assert record.result is not None
    assert record.result["kd_steps"] == 60
    assert record.measurement is not None


def test_lockstep_trains_after_every_batch_and_repeats_byte_for_byte(service: Service, digits: dict[str, Any]) -> None:
    digits["synthesis"]["num_images"] = 256
    digits["distillation"] = {
        **{name: value for name, value in digits["distillation"].items() if name not in ("steps", "full_pool_share")},
        "pacing": "lockstep",
        "steps_per_batch": 5,
        "warmup_batches": 1,
    }
    jobs = [service.submit(digits) for _ in range(2)]
    records = [service.wait_until_final(job_id) for job_id in jobs]

    assert [record.state for record in records] == [State.SUCCEEDED] * 2
    assert [record.stages.distillation and record.stages.distillation.progress.done for record in records] == [15, 15]
    shards = [service.broker.shards.manifests(job_id) for job_id in jobs]
    assert [m.student_version for m in shards[0]] == [0, 0, 5, 10]
    images = [[sample_images(service, manifest) for manifest in manifests] for manifests in shards]
    assert images[0] == images[1]


def sample_images(service: Service, manifest: Any) -> bytes:
    """Pixels of a shard: keys hold the job's id, so files of two jobs differ."""
    path = service.storage.local_path(f"{job_paths.shards(manifest.job)}/{manifest.name}")
    assert path is not None
    return read_shard(path, manifest).images.tobytes()


def test_a_users_own_network_and_checkpoint_work_from_the_first_day(
    service: Service, digits: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "own.pt"
    trained = nn.DataParallel(tiny(10))
    torch.save({"state_dict": trained.state_dict(), "epoch": 3}, checkpoint)
    service.storage.put_file(checkpoint, "models/own.pt")
    digits["teacher"] |= {"arch": "tests.e2e.networks:tiny", "checkpoint": "models/own.pt"}
    digits["student"] = {"arch": "tests.e2e.networks:tiny", "kwargs": {"channels": 1}}

    record = service.wait_until_final(service.submit(digits))

    assert record.state is State.SUCCEEDED, record.error
    assert_dataset_is_whole(service, record.id, images=512)


def test_a_factory_outside_the_allow_list_is_refused(service: Service, digits: dict[str, Any]) -> None:
    digits["student"] = {"arch": "os:system"}

    response = service.client.post("/jobs", json=digits)

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "student.arch"


def test_a_cancel_is_obeyed_in_the_middle_and_what_was_made_stays_readable(
    service: Service, digits: dict[str, Any]
) -> None:
    digits["synthesis"]["num_images"] = 100_000
    job_id = service.submit(digits)
    service.wait_for(job_id, lambda record: bool(record.stages.synthesis and record.stages.synthesis.shards >= 2))

    assert service.client.post(f"/jobs/{job_id}/cancel").status_code == 202
    record = service.wait_until_final(job_id, timeout=5)

    assert record.state is State.CANCELLED
    for manifest in service.broker.shards.manifests(job_id):
        path = service.storage.local_path(f"{job_paths.shards(job_id)}/{manifest.name}")
        assert path is not None
        read_shard(path, manifest)


def test_a_cancel_is_obeyed_in_the_middle_of_a_long_inversion(service: Service, digits: dict[str, Any]) -> None:
    digits["synthesis"] = {"method": "deepinversion", "steps": 1_000_000, "num_images": 512, "batch_size": 64}
    job_id = service.submit(digits)
    service.wait_for(job_id, lambda record: bool(record.stages.synthesis and record.stages.synthesis.heartbeat_at))
    # A batch takes hours, so a second heartbeat comes from the middle of the first one.
    began = service.record(job_id).stages.synthesis
    assert began is not None
    service.wait_for(job_id, lambda record: record.stages.synthesis != began)

    assert service.client.post(f"/jobs/{job_id}/cancel").status_code == 202

    assert service.wait_until_final(job_id, timeout=5).state is State.CANCELLED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"teacher": {"num_classes": 7}}, "checkpoint_mismatch"),
        ({"teacher": {"input": {"channels": 3, "height": 16, "width": 16}}}, "checkpoint_mismatch"),
        ({"teacher": {"checkpoint": "digits/held-out.tar"}}, "unreadable_checkpoint"),
        ({"teacher": {"arch": "torchvision:no_such_network"}}, "unknown_architecture"),
        ({"evaluation": {"shards": "digits/teacher.safetensors"}}, "unreadable_dataset"),
    ],
)
def test_what_only_a_worker_can_notice_fails_the_job_at_once_with_its_code(
    service: Service, digits: dict[str, Any], change: dict[str, Any], code: str
) -> None:
    for part, fields in change.items():
        digits[part] = {**digits[part], **fields}

    record = service.wait_until_final(service.submit(digits), timeout=60)

    assert record.state is State.FAILED
    assert record.error is not None
    assert record.error.code == code
    assert record.error.stage in (Role.SYNTHESIS, Role.DISTILLATION)
