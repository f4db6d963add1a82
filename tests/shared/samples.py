"""Batches of images for tests. Every pixel differs from its neighbours, so a swapped axis or image shows."""

from pathlib import Path

import numpy as np

from shared.shards.format import SampleBatch, write_shard
from shared.shards.manifest import ImageFormat, ShardManifest

JOB = "job-018f3a2b4c5d"


def batch(
    count: int, *, channels: int = 1, height: int = 5, width: int = 7, classes: int = 3, seed: int = 0
) -> SampleBatch:
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    return SampleBatch(
        images=rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8),
        targets=targets,
        described={
            "teacher_top1": (targets + (rng.random(count) < 0.2)) % classes,
            "teacher_confidence": rng.random(count, dtype=np.float32),
        },
        round=seed,
        student_version=seed,
    )


def shard(
    folder: Path,
    *batches: SampleBatch,
    index: int = 0,
    attempt: int = 1,
    partition: int = 0,
    image_format: ImageFormat = "png",
    created_at: float = 1.5,
) -> tuple[Path, ShardManifest]:
    """A written shard of ``JOB``."""
    return write_shard(
        folder,
        batches or [batch(6)],
        job=JOB,
        partition=partition,
        index=index,
        attempt=attempt,
        first_image=0,
        image_format=image_format,
        created_at=created_at,
    )
