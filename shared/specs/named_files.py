"""Files that a job names: the one list for admission, ownership, the broker and whoever else must look at them."""

from __future__ import annotations

from collections.abc import Iterator

from shared.specs.job import JobSpec


def named_checkpoints(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Fields and what they say: a path under the storage root, or an uploaded model (``model_paths.referred_to``)."""
    for part, network in (("teacher", spec.teacher), ("student", spec.student)):
        if network is not None and network.checkpoint is not None:
            yield f"{part}.checkpoint", network.checkpoint


def named_shards(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Fields and their patterns of tars under the storage root, for ``shards.patterns.expand_shards``."""
    if spec.shards is not None:
        yield "shards", spec.shards
    if spec.initial_shards is not None:
        yield "initial_shards", spec.initial_shards
    if spec.evaluation is not None and spec.evaluation.shards:
        yield "evaluation.shards", spec.evaluation.shards
