"""What workers tell each other while a job runs: shards, checkpoints, student snapshots, and who they are.

A shard counts once its manifest is in the job's stream. Announcing shard ``n`` of a partition stores the
worker's checkpoint for shard ``n + 1`` in the same script, so a successor never repeats or skips one; a
second announcement of the same index does nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from shared.broker import keys
from shared.broker.connection import BLOCK_SECONDS
from shared.broker.leases import Attempt, LeaseLost, unless_refused
from shared.broker.reports import Reports
from shared.broker.scripts import Script
from shared.jobs import Role, State, Task
from shared.shards.manifest import ShardManifest

# KEYS 7: shard stream. ARGV: 3 index, 4 manifest, 5 images, 6 first image, 7 checkpoint, 8 event data.
_ANNOUNCE = Script("""
if not holds() then return {'lost'} end
local index, first, count = tonumber(ARGV[3]), tonumber(ARGV[6]), tonumber(ARGV[5])
local next_index = tonumber(get(task .. ':next_index') or 0)
if index > next_index then return {'gap', next_index} end
if index == next_index then
  redis.call('XADD', KEYS[7], '*', 'manifest', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'shards', 1)
  redis.call('HINCRBY', KEYS[1], task .. ':images', count)
  tally('images', count)
  tally('shard_bytes', cjson.decode(ARGV[8]).bytes)
  local owed = {}
  for _, range in ipairs(cjson.decode(get(task .. ':owed') or '[]')) do
    if range[1] ~= first then owed[#owed + 1] = range end
  end
  redis.call('HSET', KEYS[1], task .. ':next_index', index + 1, task .. ':checkpoint', ARGV[7],
             task .. ':owed', #owed > 0 and cjson.encode(owed) or '[]', task .. ':failures', 0)
  if first + count > tonumber(get(task .. ':next_image') or 0) then set(task .. ':next_image', first + count) end
  event('shard_sealed', task, ARGV[8])
end
return {'ok'}
""")

# KEYS 7: shard stream. ARGV: 3 stream entry, 4 task that made it, 5 first image, 6 images, 7 event data,
# 8 partition, 9 '1' when the distiller had taken it.
_SET_ASIDE = Script("""
if not holds() then return 'lost' end
if redis.call('XDEL', KEYS[7], ARGV[3]) == 0 then return tonumber(get('damaged') or 0) end
local maker, owed = ARGV[4], cjson.decode(get(ARGV[4] .. ':owed') or '[]')
redis.call('HINCRBY', KEYS[1], maker .. ':images', -tonumber(ARGV[6]))
owed[#owed + 1] = {tonumber(ARGV[5]), tonumber(ARGV[6])}
set(maker .. ':owed', cjson.encode(owed))
event('shard_damaged', maker, ARGV[7])
if get(maker .. ':state') == 'succeeded' then
  local entry = redis.call('XADD', KEYS[3], '*', 'job', get('id'), 'partition', ARGV[8])
  redis.call('HSET', KEYS[1], maker .. ':state', 'queued', maker .. ':entry', entry)
  redis.call('HDEL', KEYS[1], maker .. ':token', maker .. ':finished_at')
end
redis.call('HINCRBY', KEYS[1], 'shards', -1)
if ARGV[9] == '1' then redis.call('HINCRBY', KEYS[1], 'shards_consumed', -1) end
return redis.call('HINCRBY', KEYS[1], 'damaged', 1)
""")

# KEYS 7: student hash. ARGV: 3 version, 4 name, 5 sha256, 6 event data.
_PUBLISH = Script("""
if not holds() then return 'lost' end
redis.call('HSET', KEYS[7], 'version', ARGV[3], 'name', ARGV[4], 'sha256', ARGV[5])
set('student_version', ARGV[3])
event('student_published', task, ARGV[6])
return 'ok'
""")


# KEYS: 1 the worker, 2 all workers. ARGV: 3 name, 4 milliseconds to live, then pairs of field and value.
_REGISTER = Script("""
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], now(), ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', tonumber(now()) - tonumber(ARGV[4]) / 1000)
""")


class StudentSnapshot(BaseModel):
    """A published state of the student. Its version is the distillation step after which it was taken."""

    version: int
    name: str
    sha256: str


@dataclass(frozen=True)
class AnnouncedShard:
    """A shard with its place in the job's stream."""

    position: str
    manifest: ShardManifest


@dataclass(frozen=True)
class SynthesisPosition:
    """Where a synthesis task stands. Images are counted within the partition."""

    next_index: int
    next_image: int
    images: int
    owed: tuple[tuple[int, int], ...]
    """(first image, count) of shards that were set aside and must be made again."""
    checkpoint: dict[str, Any] | None


@dataclass(frozen=True)
class Backlog:
    """How far synthesis is ahead. ``has_distiller``: some worker is working on the distillation."""

    shards: int
    has_distiller: bool
    distiller_heartbeat: str | None = None
    """Changes while that worker lives."""


class Streams(Reports):
    """Shards, students and what is reported of jobs. Every write is fenced by the attempt's token."""

    # -- shards ---------------------------------------------------------------------------------------

    def announce(self, attempt: Attempt, manifest: ShardManifest, checkpoint: Mapping[str, Any]) -> None:
        """Publishes a sealed shard together with the checkpoint from which the next one is made.

        Raises:
            LeaseLost: another attempt has the task; the shard does not count.
            ValueError: the index skips one.
        """
        told = {"index": manifest.index, "images": manifest.images, "name": manifest.name, "bytes": manifest.bytes}
        answer = _ANNOUNCE(
            self._redis,
            [*attempt.keys, keys.shards(attempt.job_id)],
            str(attempt.task),
            attempt.token,
            manifest.index,
            manifest.model_dump_json(),
            manifest.images,
            manifest.first_image,
            json.dumps(dict(checkpoint)),
            json.dumps(told),
        )
        if answer[0] == "lost":
            raise LeaseLost(attempt)
        if answer[0] == "gap":
            raise ValueError(f"shard {manifest.index} announced where {answer[1]} was due")

    def synthesis_position(self, job_id: str, task: Task) -> SynthesisPosition:
        """Where the task stands, as the last announcement left it."""
        names = ("next_index", "next_image", "images", "owed", "checkpoint")
        values = self._redis.hmget(keys.job(job_id), [f"{task}:{name}" for name in names])
        next_index, next_image, images, owed, checkpoint = values
        return SynthesisPosition(
            next_index=int(next_index or 0),
            next_image=int(next_image or 0),
            images=int(images or 0),
            owed=tuple((int(first), int(count)) for first, count in json.loads(owed or "[]")),
            checkpoint=json.loads(checkpoint) if checkpoint else None,
        )

    def shards(self, job_id: str) -> list[ShardManifest]:
        """All shards of a job that count, in the order of their announcement."""
        return [shard.manifest for shard in self._parse(self._redis.xrange(keys.shards(job_id)))]

    def is_announced(self, manifest: ShardManifest) -> bool:
        """Whether this very shard counts: what to ask before a refused one is removed.

        A refusal alone does not tell. When an answer was lost on the way, the announcement is sent again,
        and by then it can be refused although the first one counted.
        """
        return any(counted.name == manifest.name for counted in self.shards(manifest.job))

    def shards_until(self, job_id: str, position: str = "+") -> list[AnnouncedShard]:
        """The shards up to and including a position, or all, in order."""
        return self._parse(self._redis.xrange(keys.shards(job_id), max=position))

    def read_shards(
        self, job_id: str, after: str, *, count: int = 8, block_seconds: float = BLOCK_SECONDS
    ) -> list[AnnouncedShard]:
        """The next shards after a position (``0`` for the start), waiting for one for ``block_seconds``."""
        answer = self._redis.xread({keys.shards(job_id): after}, count=count, block=max(1, int(block_seconds * 1000)))
        streams = answer.items() if isinstance(answer, dict) else (answer or [])
        # RESP3 wraps each stream's entries in one more list than RESP2 does.
        return [shard for _, entries in streams for shard in self._parse(_flatten(entries))]

    @staticmethod
    def _parse(entries: Any) -> list[AnnouncedShard]:
        return [
            AnnouncedShard(position, ShardManifest.model_validate_json(fields["manifest"]))
            for position, fields in entries
        ]

    def set_aside(self, attempt: Attempt, shard: AnnouncedShard, reason: str, *, consumed: bool = False) -> int:
        """Takes a damaged shard out of the job and has its images made again.

        Args:
            attempt: any that holds a task of the job.
            shard: what was found damaged.
            reason: stable, for the event.
            consumed: it counts among the shards that the distiller has taken.

        Returns:
            How many shards of the job were damaged so far.
        """
        manifest = shard.manifest
        maker = Task(Role.SYNTHESIS, manifest.partition)
        answer = _SET_ASIDE(
            self._redis,
            [*attempt.keys, keys.shards(attempt.job_id)],
            str(attempt.task),
            attempt.token,
            shard.position,
            str(maker),
            manifest.first_image,
            manifest.images,
            json.dumps({"name": manifest.name, "index": manifest.index, "reason": reason}),
            manifest.partition,
            "1" if consumed else "",
        )
        return int(unless_refused(answer, attempt))

    def consumed(self, attempt: Attempt, *, shards: int, images: int) -> None:
        """Tells how many shards and images the distiller has taken, which lets synthesis go on."""
        self._store(attempt, {"shards_consumed": str(shards), "images_consumed": str(images)})

    def backlog(self, job_id: str) -> Backlog:
        """Announced minus consumed shards. Zero once no distiller will come any more."""
        distillation = Task(Role.DISTILLATION)
        names = ["shards", "shards_consumed", f"{distillation}:state", f"{distillation}:heartbeat_at"]
        shards, consumed, state, heartbeat = self._redis.hmget(keys.job(job_id), names)
        if state is None or State(state).is_final:
            return Backlog(0, has_distiller=True)
        return Backlog(int(shards or 0) - int(consumed or 0), state == State.RUNNING, heartbeat)

    # -- checkpoints and students ---------------------------------------------------------------------

    def save_checkpoint(self, attempt: Attempt, checkpoint: Mapping[str, Any]) -> None:
        """Stores where a successor should continue; counts as progress."""
        self._store(attempt, {f"{attempt.task}:checkpoint": json.dumps(dict(checkpoint))}, is_progress=True)

    def checkpoint(self, job_id: str, task: Task) -> dict[str, Any] | None:
        """What the last ``save_checkpoint`` or ``announce`` stored."""
        text = self._redis.hget(keys.job(job_id), f"{task}:checkpoint")
        return json.loads(text) if text else None

    def publish_student(self, attempt: Attempt, snapshot: StudentSnapshot) -> None:
        """Makes a student snapshot the newest."""
        told = json.dumps({"version": snapshot.version})
        answer = _PUBLISH(
            self._redis,
            [*attempt.keys, keys.student(attempt.job_id)],
            str(attempt.task),
            attempt.token,
            snapshot.version,
            snapshot.name,
            snapshot.sha256,
            told,
        )
        unless_refused(answer, attempt)

    def newest_student(self, job_id: str) -> StudentSnapshot | None:
        """The newest snapshot, or None before the first."""
        fields = self._redis.hgetall(keys.student(job_id))
        return StudentSnapshot.model_validate(fields) if fields else None

    # -- workers --------------------------------------------------------------------------------------

    def register_worker(self, name: str, fields: Mapping[str, str | int | float], *, ttl_seconds: float) -> None:
        """Says that a worker lives and what it does; forgotten after ``ttl_seconds`` of silence."""
        pairs = [part for pair in fields.items() for part in pair]
        _REGISTER(self._redis, [keys.worker(name), keys.WORKERS], "", "", name, int(ttl_seconds * 1000), *pairs)

    def forget_worker(self, name: str) -> None:
        """Removes a worker that stops in good order."""
        with self._redis.pipeline() as pipeline:
            pipeline.delete(keys.worker(name))
            pipeline.zrem(keys.WORKERS, name)
            pipeline.execute()

    def workers(self) -> list[dict[str, str]]:
        """All workers that were heard of lately."""
        names = sorted(self._redis.zrange(keys.WORKERS, 0, -1))
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hgetall(keys.worker(name))
            described = pipeline.execute()
        found = zip(names, described, strict=True)
        return [{"name": name, **fields} for name, fields in found if fields]


def _flatten(entries: list[Any]) -> list[Any]:
    is_wrapped = bool(entries) and isinstance(entries[0], list) and isinstance(entries[0][0], (list, tuple))
    return list(entries[0]) if is_wrapped else entries
