"""A shard counts for the holder of its task alone, and lies among the others only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.broker import Broker, LeaseLost
from shared.shards.format import stage, write_shard
from shared.shards.manifest import ShardManifest
from shared.storage import Storage, job_paths
from shared.worker.turn import Turn
from shared.worker.work_files import encode
from synth_service.synthesis.publisher import ShardEnd, ShardPublisher
from tests.shared.broker.test_leases import claim
from tests.shared.samples import batch
from tests.specs import small_job
from tests.turns import turn_at


@pytest.fixture
def turn(broker: Broker, storage: Storage) -> Iterator[Turn]:
    broker.jobs.create(small_job())
    with turn_at(claim(broker), broker, storage) as turn:
        yield turn


def staged(turn: Turn, index: int, folder: Path) -> ShardManifest:
    path, manifest = write_shard(
        folder,
        [batch(4)],
        job=turn.attempt.job_id,
        partition=0,
        index=index,
        attempt=turn.attempt.number,
        first_image=4 * index,
        image_format="png",
        created_at=0.0,
    )
    stage(turn.storage, job_paths.staging(turn.attempt.job_id), path, manifest)
    return manifest


def end(rounds: int) -> ShardEnd:
    return ShardEnd(state=encode({"rounds": rounds}), rounds=rounds, seconds=1.5 * rounds, losses={})


def test_what_is_not_announced_is_not_among_the_shards(turn: Turn, tmp_path: Path) -> None:
    manifest = staged(turn, 0, tmp_path)
    shards = job_paths.shards(turn.attempt.job_id)
    assert turn.storage.list(shards) == []

    ShardPublisher(turn).announce(manifest, end(1))

    assert turn.storage.list(shards) == [f"{shards}/{manifest.sidecar_name}", f"{shards}/{manifest.name}"]
    assert turn.storage.list(job_paths.staging(turn.attempt.job_id)) == []
    assert turn.broker.shards.manifests(turn.attempt.job_id) == [manifest]


def test_a_successor_goes_on_from_the_state_at_the_last_shard(turn: Turn, tmp_path: Path, broker: Broker) -> None:
    publisher = ShardPublisher(turn)
    assert publisher.resume(None) is None
    for index in range(2):
        publisher.announce(staged(turn, index, tmp_path), end(index + 1))
    position = broker.shards.position(turn.attempt.job_id, turn.attempt.task)
    assert position.checkpoint is not None
    broker.leases.release(turn.attempt, "worker stopping")

    with turn_at(claim(broker), broker, turn.storage.impatient()) as successor:
        state = ShardPublisher(successor).resume(position.checkpoint)

    assert state == {"rounds": 2}
    assert (position.checkpoint["rounds"], position.checkpoint["synthesis_seconds"]) == (2, 3.0)


def test_whoever_was_declared_dead_leaves_nothing(turn: Turn, tmp_path: Path) -> None:
    """Frozen with a shard in hand, it wakes up when another one has the task: at no moment is there one too many."""
    manifest = staged(turn, 0, tmp_path)
    turn.broker.leases.release(turn.attempt, "behind its back")
    assert claim(turn.broker).number == 2

    with pytest.raises(LeaseLost):
        ShardPublisher(turn).announce(manifest, end(1))

    assert turn.storage.list(job_paths.folder(turn.attempt.job_id)) == []
    assert turn.broker.shards.manifests(turn.attempt.job_id) == []


def test_a_shard_that_counted_although_the_answer_was_lost_stays(
    turn: Turn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = staged(turn, 0, tmp_path)
    announce = turn.broker.shards.announce

    def lose_the_answer(*arguments: object) -> None:
        announce(*arguments)  # type: ignore[arg-type]
        turn.broker.leases.release(turn.attempt, "behind its back")
        announce(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(turn.broker.shards, "announce", lose_the_answer)
    with pytest.raises(LeaseLost):
        ShardPublisher(turn).announce(manifest, end(1))

    assert f"{job_paths.shards(turn.attempt.job_id)}/{manifest.name}" in turn.storage.list()
    assert turn.broker.shards.manifests(turn.attempt.job_id) == [manifest]
