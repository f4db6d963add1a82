"""One attempt at a distillation, from shards to student, in this process."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distiller.attempt import distil
from shared.broker import Broker
from shared.errors import UserError
from shared.jobs import Role, State
from shared.specs import JobSpec
from shared.storage import Storage, job_paths
from shared.tasks.quality import Verdict
from shared.worker.stopping import StopFlag
from shared.worker.turn import TurnYielded, WorkerStopping
from synth_service.synthesis.attempt import synthesize
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import job_fields, small_job
from tests.turns import put_teacher, turn_at


def a_job() -> JobSpec:
    return small_job(synthesis={"max_backlog": 8})


def test_a_job_is_done_when_both_halves_have_had_their_attempt(broker: Broker, storage: Storage) -> None:
    spec = a_job()
    put_teacher(storage, spec)
    job = broker.jobs.create(spec)

    with turn_at(claim(broker), broker, storage) as turn:
        synthesize(turn)
    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        distil(turn)

    record = broker.jobs.get(job.id)
    assert record.state is State.SUCCEEDED
    assert record.result is not None
    assert (record.result["images"], record.result["kd_steps"]) == (64, 20)
    assert record.result["student"] == job_paths.student(job.id)
    assert storage.exists(job_paths.student(job.id))
    assert storage.list(job_paths.work(job.id)) == []
    assert record.quality is not None
    assert record.quality.verdict is Verdict.DOUBTFUL  # 64 images are too few to tell
    assert {"label_agreement", "teacher_confidence"} <= record.quality.measures.keys()
    assert record.quality.model_dump(mode="json") == record.result["quality"]


@pytest.mark.parametrize("on_poor", ["warn", "stop"])
def test_a_poor_student_is_told_of_or_fails_the_job(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch, on_poor: str
) -> None:
    monkeypatch.setattr("distiller.held_back.FEWEST_IMAGES", 4)
    spec = JobSpec.model_validate(job_fields(synthesis={"max_backlog": 8}) | {"on_poor": on_poor})
    put_teacher(storage, spec)  # untrained, and so is the student after 20 steps
    monkeypatch.setattr("shared.tasks.quality.POOR_AGREEMENT", 1.1)
    monkeypatch.setattr("shared.tasks.quality.GOOD_AGREEMENT", 1.1)
    job = broker.jobs.create(spec)
    with turn_at(claim(broker), broker, storage) as turn:
        synthesize(turn)
    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        if on_poor == "stop":
            with pytest.raises(UserError, match=r"Give it more|Check teacher") as error:
                distil(turn)
            assert error.value.code == "poor_quality"
        else:
            distil(turn)

    record = broker.jobs.get(job.id)
    assert record.quality is not None
    assert record.quality.verdict is Verdict.POOR
    assert [event.type for event in broker.reports.events(job.id)].count("quality_poor") == 1


def test_a_worker_that_is_told_to_end_leaves_a_checkpoint(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = a_job()
    put_teacher(storage, spec)
    job = broker.jobs.create(spec)
    with turn_at(claim(broker), broker, storage) as turn:
        synthesize(turn)
    attempt, stopping = claim(broker, Role.DISTILLATION), StopFlag()

    with turn_at(attempt, broker, storage, stopping) as turn:
        monkeypatch.setattr(turn, "progress", lambda _: stopping.set())  # after the first steps
        with pytest.raises(WorkerStopping):
            distil(turn)

    pointer = broker.checkpoints.pointer(job.id, attempt.task)
    assert pointer is not None
    assert storage.exists(pointer["name"])


def test_a_job_that_only_distils_looks_at_no_label_and_passes_over_an_empty_shard(
    broker: Broker, storage: Storage
) -> None:
    fields = job_fields(distillation={"warmup_batches": None})
    spec = JobSpec.model_validate(fields | {"synthesis": None, "shards": "data/{a,b}.tar"})
    put_teacher(storage, spec)
    picture = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture, "PNG")
    for name, count in (("a", 0), ("b", 20)):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for index in range(count):
                for member, data in ((f"{index}.png", picture.getvalue()), (f"{index}.cls", b"cat")):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        storage.put_bytes(content.getvalue(), f"data/{name}.tar")
    job = broker.jobs.create(spec)

    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        distil(turn)

    result = broker.jobs.get(job.id).result
    assert result is not None
    assert (result["dataset_images"], result["dataset_shards"]) == (20, 2)


def test_initial_shards_join_the_pool_and_count_for_nothing_else(broker: Broker, storage: Storage) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture, "PNG")
    content = io.BytesIO()
    with tarfile.open(mode="w", fileobj=content) as tar:
        for number in range(40):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    storage.put_bytes(content.getvalue(), "data/first.tar")
    fields = job_fields(synthesis={"max_backlog": 8})
    spec = JobSpec.model_validate(fields | {"initial_shards": "data/first.tar"})
    put_teacher(storage, spec)
    job = broker.jobs.create(spec)

    # One after the other: while one thread traces the teacher, no other can call a network.
    with turn_at(claim(broker), broker, storage) as turn:
        synthesize(turn)
    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        distil(turn)

    record = broker.jobs.get(job.id)
    assert record.state is State.SUCCEEDED
    assert record.result is not None
    assert (record.result["images"], record.result["kd_steps"]) == (64, 20)


@pytest.mark.parametrize(
    ("teacher", "synthesis"),
    [
        (
            {"arch": "timm:deit_tiny_patch16_224", "kwargs": {"img_size": 16, "patch_size": 4, "depth": 2}},
            {"preset": "psaq-vit", "steps": 3, "num_images": 32, "batch_size": 16, "max_backlog": 8},
        ),
        ({"arch": "resnet8"}, {"preset": "cda-4k", "steps": 3, "num_images": 32, "batch_size": 16, "max_backlog": 8}),
    ],
)
def test_methods_that_optimize_pixels_go_from_teacher_to_student(
    broker: Broker, storage: Storage, teacher: dict[str, Any], synthesis: dict[str, Any]
) -> None:
    if teacher["arch"].startswith("timm"):
        pytest.importorskip("timm")
    fields = job_fields()
    fields |= {"teacher": {**fields["teacher"], **teacher}, "synthesis": synthesis}
    spec = JobSpec.model_validate(fields)
    put_teacher(storage, spec)
    job = broker.jobs.create(spec)

    with turn_at(claim(broker), broker, storage) as turn:
        synthesize(turn)
    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        distil(turn)

    record = broker.jobs.get(job.id)
    assert record.state is State.SUCCEEDED, record.error
    assert record.result is not None
    assert (record.result["images"], record.result["kd_steps"]) == (32, 20)


def test_a_distiller_without_images_lets_a_job_that_has_some_go_first(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = a_job()
    put_teacher(storage, spec)
    broker.jobs.create(spec)
    other = broker.jobs.create(spec)
    waiting = claim(broker, Role.DISTILLATION)
    claim(broker)
    maker = claim(broker)
    assert maker.job_id == other.id
    broker.shards.announce(maker, manifest_of(maker, 0), {})
    monkeypatch.setattr("distiller.attempt.YIELD_SECONDS", 0.0)
    monkeypatch.setattr("distiller.attempt.BLOCK_SECONDS", 0.01)

    with turn_at(waiting, broker, storage) as turn, pytest.raises(TurnYielded):
        distil(turn)

    broker.leases.release(waiting, "yield", is_parked=True)
    following = claim(broker, Role.DISTILLATION)
    assert following.job_id == other.id
    assert broker.leases.claim(Role.DISTILLATION, "another", block_seconds=0.01) is None
    assert broker.checkpoints.pointer(waiting.job_id, waiting.task) is not None


class WithExtraState(nn.Module):
    """As modules that keep more than tensors, such as those of Transformer Engine."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits

    def get_extra_state(self) -> object:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        assert state == {"version": 1}


def test_networks_with_extra_state_go_through_a_whole_job(broker: Broker, storage: Storage) -> None:
    network = {"arch": f"{__name__}:WithExtraState"}
    fields = job_fields(teacher=network, student=network)
    spec = JobSpec.model_validate(fields)
    path = storage.local_path(spec.teacher.checkpoint)
    assert path is not None
    torch.save(WithExtraState(10).state_dict(), path)
    job = broker.jobs.create(spec)
    for role, work in ((Role.SYNTHESIS, synthesize), (Role.DISTILLATION, distil)):
        with turn_at(claim(broker, role), broker, storage, allowed_factories=(__name__,)) as turn:
            work(turn)
    assert broker.jobs.get(job.id).state is State.SUCCEEDED
