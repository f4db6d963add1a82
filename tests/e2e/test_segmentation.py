"""A segmentation job over HTTP, with real processes: label maps in the shards, mIoU in the record, same bytes again."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.broker import jobs as broker_jobs
from shared.jobs import State
from shared.networks.building import build_network
from shared.networks.weights import save_checkpoint
from shared.shards.format import read_shard
from shared.shards.image_codec import encode_image
from shared.specs import JobSpec
from shared.storage import job_paths
from shared.tasks.labels import ClassMaps
from synth_service.client import Client
from tests.e2e.service import Service
from tests.e2e.test_resume import everything, kill, wait_for_shards

pytestmark = pytest.mark.e2e

PINNED = "job-0123456789abcdef0124"
"""Not that of another test: the tests share a service."""

CLASSES = 4
LABELS = ClassMaps(CLASSES, 255)


@pytest.fixture
def scenes(service: Service, tmp_path: Path) -> dict[str, Any]:
    """A job whose teacher is untrained, on 32×32 images; its labeled images are of two other sizes."""
    fields: dict[str, Any] = {
        "teacher": {
            "task": "semantic-segmentation",
            "arch": "deeplab_tiny",
            "checkpoint": "scenes/teacher.safetensors",
            "num_classes": CLASSES,
            "input": {"channels": 1, "height": 32, "width": 32, "mean": [0.5], "std": [0.25]},
        },
        "student": {"arch": "deeplab", "kwargs": {"width": 4}},
        "synthesis": {
            "num_images": 96,
            "batch_size": 16,
            "steps": 2,
            "latent_dim": 16,
            "generator_width": 4,
            "method": "fast-meta",
        },
        "distillation": {"batch_size": 8, "pacing": "lockstep", "steps_per_batch": 6, "warmup_batches": 1},
        "evaluation": {"shards": "scenes/held-out.tar", "every_steps": 10},
    }
    spec = JobSpec.model_validate(fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = build_network(spec.teacher, num_classes=CLASSES, task=spec.teacher.task, input=spec.teacher.input)
    save_checkpoint(teacher, tmp_path / "teacher.safetensors", {})
    service.storage.put_file(tmp_path / "teacher.safetensors", spec.teacher.checkpoint)
    service.storage.put_bytes(labeled_tar(), "scenes/held-out.tar")
    return fields


def labeled_tar() -> bytes:
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(6):
            height, width = (40, 24) if number < 4 else (30, 50)
            image = random.integers(0, 256, (1, height, width), dtype=np.uint8)
            label = random.integers(0, CLASSES, (height, width)).astype(np.uint8)
            label[:2] = 255
            for extension, content in {"png": encode_image(image, "png"), **LABELS.encode(label)}.items():
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_segmentation_job_gives_maps_a_student_and_its_miou(service: Service, scenes: dict[str, Any]) -> None:
    job_id = service.submit(scenes)

    record = service.wait_until_final(job_id)

    assert record.state is State.SUCCEEDED, record.error
    assert record.result is not None
    assert record.measurement is not None
    assert record.measurement.metrics.keys() == {
        "student_miou",
        "teacher_miou",
        "agreement",
        "student_pixel_accuracy",
    }
    assert 0 < record.measurement.metrics["student_miou"] < 1
    assert len(record.result["student_class_iou"]) == CLASSES  # type: ignore[arg-type]
    for manifest in service.broker.shards.manifests(job_id):
        path = service.storage.local_path(f"{job_paths.shards(job_id)}/{manifest.name}")
        assert path is not None
        images, maps = read_shard(path, manifest, LABELS)
        assert maps.shape == (len(images), 32, 32)
        assert sum(manifest.class_counts.values()) == maps.size
    card = service.storage.read_bytes(f"{job_paths.folder(job_id)}/README.md").decode()
    assert "image-segmentation" in card
    assert "## Pixels per class" in card
    page = service.client.get(f"/ui/jobs/{job_id}/status").raise_for_status().text
    assert "mIoU" in page
    with Client(str(service.client.base_url)) as client:
        student = client.jobs.get(job_id).student()
    assert student(torch.zeros(1, 1, 32, 32)).shape == (1, CLASSES, 32, 32)


def test_a_killed_and_resumed_segmentation_job_gives_the_same_bytes_as_one_left_alone(
    service: Service, scenes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_jobs, "new_job_id", lambda: PINNED)
    spec = JobSpec.model_validate(scenes)
    service.broker.jobs.create(spec)
    assert service.wait_until_final(PINNED).state is State.SUCCEEDED
    left_alone = everything(service, PINNED)
    service.client.delete(f"/jobs/{PINNED}").raise_for_status()

    service.broker.jobs.create(spec)
    wait_for_shards(service, PINNED, 2)
    kill(service, "synthesis")
    wait_for_shards(service, PINNED, 4)
    kill(service, "distiller")
    assert service.wait_until_final(PINNED).state is State.SUCCEEDED
    assert everything(service, PINNED) == left_alone
