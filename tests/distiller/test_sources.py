"""Where a successor's images come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distiller.sources import JobShards
from shared.broker import Broker
from shared.jobs import Role
from shared.shards.format import seal, stage, write_shard
from shared.storage import Storage, job_paths
from shared.worker import quarantine
from shared.worker.turn import Turn, TurnYielded
from tests.shared.broker.test_leases import claim
from tests.shared.samples import batch
from tests.specs import small_job
from tests.turns import turn_at

SHARDS = 4
IMAGES = 6


@pytest.fixture
def turn(broker: Broker, storage: Storage, tmp_path: Path) -> Iterator[Turn]:
    """A distillation whose job has four shards."""
    spec = small_job(teacher={"input": {"channels": 1, "height": 5, "width": 7}})
    job = broker.jobs.create(spec)
    maker = claim(broker)
    for index in range(SHARDS):
        path, manifest = write_shard(
            tmp_path / "local",
            [batch(IMAGES, seed=index)],
            job=job.id,
            partition=0,
            index=index,
            attempt=1,
            first_image=IMAGES * index,
            image_format="png",
            created_at=0.0,
        )
        stage(storage, job_paths.staging(job.id), path, manifest)
        seal(storage, job_paths.staging(job.id), job_paths.shards(job.id), manifest)
        broker.shards.announce(maker, manifest, {})
    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        yield turn


def position_of(turn: Turn, index: int) -> dict[str, str]:
    return {"position": list(turn.broker.shards.until(turn.attempt.job_id))[index].position}


def test_a_pool_that_keeps_all_is_refilled_with_all(turn: Turn) -> None:
    source = JobShards(turn)

    assert source.begin_refill(position_of(turn, 2), capacity=100) == 0
    assert [len(images) for images in source.refill()] == [IMAGES] * 3
    assert source.shards == 3


def test_only_the_shards_that_the_pool_still_holds_are_read_again(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    source = JobShards(turn)
    fetched = source._cache.fetched

    def noted(name: str, **more: Any) -> Any:
        read.append(name)
        return fetched(name, **more)

    monkeypatch.setattr(source._cache, "fetched", noted)

    assert source.begin_refill(position_of(turn, 3), capacity=IMAGES + 1) == 2 * IMAGES
    assert [len(images) for images in source.refill()] == [IMAGES] * 2

    assert [name.rpartition("-")[0][-6:] for name in read] == ["000002", "000003"]
    assert source.shards == SHARDS


def test_a_shard_that_is_missing_from_a_part_ends_the_attempt_for_another(
    turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is quarantined by then, so the next one reads an older shard in its place."""
    monkeypatch.setattr(quarantine, "SECOND_LOOK_SECONDS", 0.0)
    manifests = turn.broker.shards.manifests(turn.attempt.job_id)
    position = position_of(turn, 3)
    turn.storage.delete(f"{job_paths.shards(turn.attempt.job_id)}/{manifests[2].name}")
    source = JobShards(turn)
    source.begin_refill(position, capacity=IMAGES + 1)

    with pytest.raises(TurnYielded):
        list(source.refill())

    again = JobShards(turn)
    assert again.begin_refill(position, capacity=IMAGES + 1) == IMAGES
    assert [len(images) for images in again.refill()] == [IMAGES] * 2


def test_a_large_job_may_lose_a_share_of_its_shards(turn: Turn) -> None:
    assert quarantine.damage_limit(turn) == turn.settings.max_damaged_shards
    synthesis = {"num_images": 16 * 5000, "batches_per_shard": 1, "partitions": 3}
    turn.spec = small_job(synthesis=synthesis)

    assert quarantine.damage_limit(turn) == 50
