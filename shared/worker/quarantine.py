"""What happens to a shard that is not what its manifest promises: it leaves the job and is made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from shared.broker import AnnouncedShard
from shared.errors import UserError
from shared.shards.format import DamagedShard, discard, verify_shard
from shared.storage import job_paths
from shared.worker.loop import Turn

logger = structlog.get_logger()


@contextmanager
def fetched(turn: Turn, shard: AnnouncedShard) -> Iterator[Path]:
    """A local path of a shard's tar, for as long as the block lasts.

    Raises:
        DamagedShard: it is not there.
    """
    name = f"{job_paths.shards(shard.manifest.job)}/{shard.manifest.name}"
    try:
        path = turn.storage.fetch(name, turn.scratch)
    except FileNotFoundError:
        raise DamagedShard("missing", f"{shard.manifest.name} is missing") from None
    try:
        yield path
    finally:
        if turn.storage.local_path(name) is None:
            path.unlink(missing_ok=True)


def set_aside(turn: Turn, shard: AnnouncedShard, damage: DamagedShard, *, consumed: bool) -> None:
    """Takes a damaged shard out of the job, has its images made again and removes its files.

    Raises:
        UserError: ``too_many_damaged_shards``.
    """
    logger.warning("shard_damaged", shard=shard.manifest.name, reason=damage.reason)
    damaged = turn.broker.shards.quarantine(turn.attempt, shard, damage.reason, consumed=consumed)
    discard(turn.storage, job_paths.shards(shard.manifest.job), shard.manifest)
    limit = turn.settings.max_damaged_shards
    if damaged > limit:
        message = (
            f"{damaged} shards were damaged between writing and reading, the last because of {damage}; the limit "
            f"is {limit} (DFKD_MAX_DAMAGED_SHARDS). Check the storage."
        )
        raise UserError("too_many_damaged_shards", message)


def verify_all(turn: Turn, *, consumed: bool) -> bool:
    """Reads every shard of the job once more, so that what is delivered is what was promised.

    Args:
        turn: an attempt at any task of the job.
        consumed: the distiller has taken all of them.

    Returns:
        Whether all are whole. Those that are not were set aside.
    """
    is_whole = True
    for shard in turn.broker.shards.until(turn.attempt.job_id):
        turn.check()
        try:
            with fetched(turn, shard) as path:
                verify_shard(path, shard.manifest)
        except DamagedShard as damage:
            set_aside(turn, shard, damage, consumed=consumed)
            is_whole = False
    return is_whole
