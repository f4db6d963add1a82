import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.shards.format import SampleBatch, write_shard
from shared.specs.estimates import estimate
from tests.specs import small_job


def test_counts_are_those_of_the_plan() -> None:
    made = estimate(small_job(synthesis={"num_images": 103, "batch_size": 10, "partitions": 2, "batches_per_shard": 2}))
    # 52 and 51 images: 6 batches and 3 shards each.
    assert (made.images, made.rounds, made.shards, made.workers) == (103, 12, 6, 2)
    assert made.inversion_steps == 24
    assert (made.kd_steps, made.kd_images) == (20, 320)
    assert made.pool_bytes == 103 * 16 * 16


def test_a_job_without_distillation_has_no_steps_and_one_without_synthesis_no_images() -> None:
    dataset = estimate(small_job(distillation=None, student=None))
    assert (dataset.kd_steps, dataset.kd_images, dataset.pool_bytes) == (None, None, None)
    existing = estimate(
        small_job(synthesis=None, shards="data/a.tar", distillation={"steps": 5, "warmup_batches": None})
    )
    assert (existing.images, existing.bytes, existing.workers, existing.kd_steps) == (None, None, 0, 5)


@pytest.mark.parametrize("image_format", ["png", "jpg", "npy"])
@pytest.mark.parametrize("size", [8, 32])
def test_the_room_is_enough_for_noise_and_not_twice_as_much(tmp_path: Path, image_format: str, size: int) -> None:
    spec = small_job(
        teacher={"arch": "resnet8", "num_classes": 10, "checkpoint": "x", "input": {"height": size, "width": size}},
        synthesis={"num_images": 100, "batch_size": 100, "image_format": image_format},
        distillation={"warmup_batches": 0},
    )
    images = np.random.default_rng(0).integers(0, 256, (100, 3, size, size), dtype=np.uint8)
    described: dict[str, NDArray[Any]] = {
        "teacher_top1": np.zeros(100, np.int64),
        "teacher_confidence": np.ones(100, np.float32),
    }
    batch = SampleBatch(images, np.zeros(100, np.int64), described, 1, 0)
    assert spec.synthesis is not None
    path, _ = write_shard(
        tmp_path,
        [batch],
        job="job",
        partition=0,
        index=0,
        attempt=1,
        first_image=0,
        image_format=spec.synthesis.image_format,
        created_at=0,
    )
    room = estimate(spec).bytes
    assert room is not None
    assert path.stat().st_size <= room <= 2 * path.stat().st_size, math.ceil(path.stat().st_size)
