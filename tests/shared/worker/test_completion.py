"""The end of a job: what is delivered is what counts, whoever completes the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.broker import Broker
from shared.shards.dataset_folder import remove_unlisted
from shared.shards.format import seal, stage, write_shard
from shared.shards.manifest import ShardManifest
from shared.storage import Storage, job_paths
from shared.worker.completion import finish
from shared.worker.turn import Turn
from tests.shared.broker.test_leases import claim
from tests.shared.samples import batch
from tests.specs import small_job
from tests.turns import turn_at


@pytest.fixture
def turn(broker: Broker, storage: Storage) -> Iterator[Turn]:
    broker.jobs.create(small_job(synthesis={"num_images": 8, "batch_size": 8}, student=None, distillation=None))
    with turn_at(claim(broker), broker, storage) as turn:
        yield turn


def sealed(turn: Turn, index: int, *, attempt: int) -> ShardManifest:
    job_id = turn.attempt.job_id
    path, manifest = write_shard(
        turn.scratch,
        [batch(8)],
        job=job_id,
        partition=0,
        index=index,
        attempt=attempt,
        first_image=0,
        image_format="png",
        created_at=0.0,
    )
    stage(turn.storage, job_paths.staging(job_id), path, manifest)
    seal(turn.storage, job_paths.staging(job_id), job_paths.shards(job_id), manifest)
    return manifest


def test_only_what_counts_is_delivered(turn: Turn) -> None:
    counted, orphan = sealed(turn, 0, attempt=1), sealed(turn, 1, attempt=1)
    turn.broker.shards.announce(turn.attempt, counted, {"synthesis_seconds": 1.0})

    assert finish(turn, {"more": 1})

    names = {name.rpartition("/")[2] for name in turn.storage.list(job_paths.shards(turn.attempt.job_id))}
    assert names == {counted.name, counted.sidecar_name}
    assert orphan.name not in names
    result = turn.broker.jobs.get(turn.attempt.job_id).result
    assert result is not None
    assert (result["images"], result["more"]) == (8, 1)
    assert turn.storage.list(job_paths.work(turn.attempt.job_id)) == []


def test_a_finisher_that_freezes_before_it_tidies_removes_nothing_of_its_successors(
    turn: Turn, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes up when the job has succeeded: with a shard that was made again meanwhile."""
    first = sealed(turn, 0, attempt=1)
    broker.shards.announce(turn.attempt, first, {"synthesis_seconds": 1.0})
    again: list[ShardManifest] = []

    def freeze(storage: Storage, folder: str, manifests: list[ShardManifest], present: list[str]) -> None:
        (shard,) = broker.shards.until(turn.attempt.job_id)
        broker.shards.quarantine(turn.attempt, shard, "missing")
        again.append(sealed(turn, 1, attempt=2))
        broker.shards.announce(turn.attempt, again[0], {"synthesis_seconds": 2.0})
        remove_unlisted(storage, folder, manifests, present)

    monkeypatch.setattr("shared.worker.completion.remove_unlisted", freeze)
    finish(turn, {})

    assert f"{job_paths.shards(turn.attempt.job_id)}/{again[0].name}" in turn.storage.list()
