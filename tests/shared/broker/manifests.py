"""Manifests of shards that need not exist: the broker never looks at files."""

from shared.broker import Attempt
from shared.shards.manifest import ShardManifest, shard_name


def manifest_of(attempt: Attempt, index: int, *, images: int = 16, first_image: int | None = None) -> ShardManifest:
    """A manifest as the worker of this attempt would announce it."""
    return ShardManifest(
        name=shard_name(attempt.job_id, attempt.task.partition, index, attempt.number),
        job=attempt.job_id,
        partition=attempt.task.partition,
        index=index,
        attempt=attempt.number,
        images=images,
        bytes=1,
        sha256="0" * 64,
        class_counts={0: images},
        first_image=index * images if first_image is None else first_image,
        student_version=0,
        channels=1,
        height=16,
        width=16,
        image_format="png",
        created_at=0.0,
    )
