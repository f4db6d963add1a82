"""What happens to a shard that is not what its manifest promises: it leaves the job and is made again.

It is read twice before, with a pause in between: what a storage in trouble hands out may be half of what it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from shared.broker import AnnouncedShard
from shared.errors import UserError
from shared.shards.format import DamagedShard, discard, verify_shard
from shared.storage import job_paths
from shared.worker.turn import Turn

logger = structlog.get_logger()

SECOND_LOOK_SECONDS = 1.0

DAMAGED_SHARE = 0.01
"""Of a job's shards that may be damaged whatever the settings say: a large job meets more bad moments."""

Result = TypeVar("Result")


def read_twice(turn: Turn, shard: AnnouncedShard, read: Callable[[], Result]) -> Result:
    """What ``read`` returns, at the second try if not at the first.

    Raises:
        DamagedShard: it was damaged, or not there, both times.
    """
    try:
        return _read(shard, read)
    except DamagedShard as damage:
        logger.warning("shard_is_read_again", shard=shard.manifest.name, reason=damage.reason)
    turn.pause(SECOND_LOOK_SECONDS)
    return _read(shard, read)


def _read(shard: AnnouncedShard, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except FileNotFoundError:  # as the storage says, which never does while it is away
        raise DamagedShard("missing", f"{shard.manifest.name} is missing") from None


def quarantine(turn: Turn, shard: AnnouncedShard, damage: DamagedShard, *, consumed: bool) -> None:
    """Takes a damaged shard out of the job, has its images made again and removes its files.

    Of one that is missing nothing is removed: if it comes back, it is cleared away with all that is not of the job.

    Raises:
        UserError: ``too_many_damaged_shards``.
    """
    logger.warning("shard_damaged", shard=shard.manifest.name, reason=damage.reason)
    damaged = turn.broker.shards.quarantine(turn.attempt, shard, damage.reason, consumed=consumed)
    if damage.reason != "missing":
        discard(turn.storage, job_paths.shards(shard.manifest.job), shard.manifest)
    limit = damage_limit(turn)
    if damaged > limit:
        message = (
            f"{damaged} shards were damaged between writing and reading, the last because of {damage}; the limit "
            f"is {limit} (DFKD_MAX_DAMAGED_SHARDS, or a hundredth of the job's shards). Check the storage."
        )
        raise UserError("too_many_damaged_shards", message)


def damage_limit(turn: Turn) -> int:
    """Most shards of the job that may be damaged: as many as the settings say, or a share of many."""
    synthesis = turn.spec.synthesis
    shards = 0
    if synthesis is not None:
        parts = (synthesis.images_of_partition(partition) for partition in range(synthesis.partitions))
        shards = sum(-(-images // synthesis.images_per_shard) for images in parts)
    return max(turn.settings.max_damaged_shards, int(DAMAGED_SHARE * shards))


def verify_all(turn: Turn, *, consumed: bool) -> bool:
    """Reads every shard of the job once more, so that what is delivered is what was promised.

    Args:
        turn: an attempt at any task of the job.
        consumed: the distiller has taken all of them.

    Returns:
        Whether all are whole. Those that are not were quarantined.
    """
    is_whole = True
    for shard in turn.broker.shards.until(turn.attempt.job_id):
        turn.check()
        try:
            read_twice(turn, shard, partial(_verify, turn, shard))
        except DamagedShard as damage:
            quarantine(turn, shard, damage, consumed=consumed)
            is_whole = False
    return is_whole


def _verify(turn: Turn, shard: AnnouncedShard) -> None:
    name = f"{job_paths.shards(shard.manifest.job)}/{shard.manifest.name}"
    with turn.storage.fetched(name, turn.scratch) as path:
        verify_shard(path, shard.manifest)
