"""Shards of a job: announced, consumed, and quarantined when they are damaged.

A shard counts once its manifest is in the job's stream. Announcing shard ``n`` of a partition stores the
worker's checkpoint for shard ``n + 1`` in the same script, so a successor never repeats or skips one; a
second announcement of the same index does nothing.

Where another program trains on the images, ``consumed_until`` of the job's hash is the place of the last shard that it
has used up; no other job has that field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.broker import keys
from shared.broker.attempts import Attempt, LeaseLost, unless_refused
from shared.broker.connection import BLOCK_SECONDS, Client
from shared.broker.keys import Key
from shared.broker.refusals import NotExternal
from shared.broker.scripts import Caller, job_script
from shared.jobs import Role, Task
from shared.shards.manifest import ShardManifest


@job_script("""
if not holds() then return {'lost'} end
local next_index = tonumber(get(task .. ':next_index') or 0)
if index > next_index then return {'gap', next_index} end
if index == next_index then
  redis.call('XADD', stream, '*', 'manifest', manifest)
  redis.call('HINCRBY', KEYS[1], 'shards', 1)
  redis.call('HINCRBY', KEYS[1], task .. ':images', images)
  tally('images', images)
  tally('shard_bytes', bytes)
  redis.call('HINCRBY', KEYS[1], 'shard_bytes', bytes)
  local owed = {}
  for _, range in ipairs(cjson.decode(get(task .. ':owed') or '[]')) do
    if range[1] ~= first_image then owed[#owed + 1] = range end
  end
  redis.call('HSET', KEYS[1], task .. ':next_index', index + 1, task .. ':checkpoint', checkpoint,
             task .. ':owed', #owed > 0 and cjson.encode(owed) or '[]', task .. ':failures', 0, task .. ':forgiven', 0)
  if first_image + images > tonumber(get(task .. ':next_image') or 0) then
    set(task .. ':next_image', first_image + images)
  end
  event('shard_sealed', task, told)
end
return {'ok'}
""")
def _announce(
    *,
    stream: Key,
    index: int,
    manifest: str,
    images: int,
    first_image: int,
    bytes: int,
    checkpoint: str,
    told: str,
) -> list[Any]: ...


@job_script("""
if not holds() then return 'lost' end
local until_used = get('consumed_until')
if until_used then consumed = #redis.call('XRANGE', stream, position, until_used, 'COUNT', 1) > 0 end
if redis.call('XDEL', stream, position) == 0 then return tonumber(get('damaged') or 0) end
local owed = cjson.decode(get(maker .. ':owed') or '[]')
redis.call('HINCRBY', KEYS[1], maker .. ':images', -images)
owed[#owed + 1] = {first_image, images}
set(maker .. ':owed', cjson.encode(owed))
event('shard_damaged', maker, told)
if get(maker .. ':state') == 'succeeded' then
  local entry = redis.call('XADD', KEYS[3], '*', 'job', job_id, 'partition', string.match(maker, ':(%d+)$'))
  -- Delivered at once, to nobody, so that it waits before all tasks that no worker has had.
  redis.call('XCLAIM', KEYS[3], GROUP, NOBODY, 0, entry, 'FORCE', 'JUSTID')
  redis.call('HSET', KEYS[1], maker .. ':state', 'queued', maker .. ':entry', entry)
  redis.call('HDEL', KEYS[1], maker .. ':token', maker .. ':finished_at')
end
redis.call('HINCRBY', KEYS[1], 'shards', -1)
if consumed then redis.call('HINCRBY', KEYS[1], 'shards_consumed', -1) end
return redis.call('HINCRBY', KEYS[1], 'damaged', 1)
""")
def _quarantine(
    *, stream: Key, position: str, maker: str, first_image: int, images: int, told: str, consumed: bool
) -> int | str:
    """``maker`` is the task that made the shard; ``consumed`` says that the distiller had taken it.

    Whether another program has, its place tells: the range from the shard to there is empty unless it has.
    """
    ...


@job_script("""
local distillation = 'distillation:0'
local state = get(distillation .. ':state')
local ahead = tonumber(get('shards') or 0) - tonumber(get('shards_consumed') or 0)
if get('consumed_until') then return {ahead, 0} end
if not state or is_final(state) then return {0, 1} end
local silence = tonumber(now()) - tonumber(get(distillation .. ':heartbeat_at') or 0)
return {ahead, state == 'running' and silence < dead_after_seconds and 1 or 0}
""")
def _backlog(*, dead_after_seconds: float) -> list[int]: ...


@job_script("""
if not holds() then return 'lost' end
redis.call('HSET', KEYS[1], 'shards_consumed', shards, 'images_consumed', images)
return 'ok'
""")
def _consumed(*, shards: int, images: int) -> str: ...


@job_script("""
if not get('state') then return {'missing'} end
local before = get('consumed_until')
if not before then return {'not external'} end
local place, count = before, 0
repeat -- empty at once where the place lies before the one that is known
  local page = redis.call('XRANGE', stream, '(' .. place, last, 'COUNT', 500)
  count = count + #page
  if #page > 0 then place = page[#page][1] end
until #page < 500
if count > 0 then
  set('consumed_until', place)
  redis.call('HINCRBY', KEYS[1], 'shards_consumed', count)
end
return {'ok', place, tonumber(get('shards_consumed') or 0), tonumber(get('shards') or 0)}
""")
def _used_up(*, stream: Key, last: str) -> list[Any]: ...


PAGE: Final = 500
"""Manifests asked for at once."""


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
    """(first image, count) of quarantined shards, to be made again."""
    checkpoint: dict[str, Any] | None


@dataclass(frozen=True)
class Backlog:
    """How far synthesis is ahead. ``has_distiller``: a living worker is working on the distillation."""

    shards: int
    has_distiller: bool


@dataclass(frozen=True)
class UsedUp:
    """How far another program is. ``until``: place of the last shard that it has used up, ``0`` before the first."""

    until: str
    shards: int
    announced: int


class Shards:
    """The shards of each job. Every write of a worker is fenced by the attempt's token.

    Args:
        client: of the server.
        lease_seconds: silence after which a worker loses its claim.
    """

    def __init__(self, client: Client, *, lease_seconds: float) -> None:
        self._redis = client
        self._lease_seconds = lease_seconds

    def announce(self, attempt: Attempt, manifest: ShardManifest, checkpoint: Mapping[str, Any]) -> None:
        """Publishes a sealed shard together with the checkpoint from which the next one is made.

        Raises:
            LeaseLost: another attempt has the task; the shard does not count.
            ValueError: the index skips one.
        """
        told = {"index": manifest.index, "images": manifest.images, "name": manifest.name, "bytes": manifest.bytes}
        answer = _announce(
            self._redis,
            attempt.caller,
            stream=keys.shards(attempt.job_id),
            index=manifest.index,
            manifest=manifest.model_dump_json(),
            images=manifest.images,
            first_image=manifest.first_image,
            bytes=manifest.bytes,
            checkpoint=json.dumps(dict(checkpoint)),
            told=json.dumps(told),
        )
        if answer[0] == "lost":
            raise LeaseLost(attempt)
        if answer[0] == "gap":
            raise ValueError(f"shard {manifest.index} announced where {answer[1]} was due")

    def position(self, job_id: str, task: Task) -> SynthesisPosition:
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

    def manifests(self, job_id: str) -> list[ShardManifest]:
        """All shards of a job that count, in the order of their announcement."""
        return [shard.manifest for shard in self.until(job_id)]

    def is_announced(self, manifest: ShardManifest) -> bool:
        """Whether this very shard counts: what to ask before a refused one is removed.

        A refusal alone does not tell. When an answer was lost on the way, the announcement is sent again,
        and by then it can be refused although the first one counted.
        """
        # From the newest back. A partition announces in the order of the index, so a shard of the same partition that
        # is not younger ends the search: what was announced since is few, whatever the job has in all.
        end = "+"
        while True:
            found = self._parse(self._redis.xrevrange(keys.shards(manifest.job), max=end, count=PAGE))
            for shard in found:
                counted = shard.manifest
                if counted.partition == manifest.partition and counted.index <= manifest.index:
                    return counted.name == manifest.name
            if len(found) < PAGE:
                return False
            end = f"({found[-1].position}"

    def until(self, job_id: str, position: str = "+") -> Iterator[AnnouncedShard]:
        """The shards up to and including a position, or all, in order; a page at a time, so that the server and the
        caller's memory bear a job of a million.
        """
        start = "-"
        while True:
            page = self._parse(self._redis.xrange(keys.shards(job_id), min=start, max=position, count=PAGE))
            yield from page
            if len(page) < PAGE:
                return
            start = f"({page[-1].position}"

    def read(
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

    def quarantine(self, attempt: Attempt, shard: AnnouncedShard, reason: str, *, consumed: bool = False) -> int:
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
        answer = _quarantine(
            self._redis,
            attempt.caller,
            stream=keys.shards(attempt.job_id),
            position=shard.position,
            maker=str(maker),
            first_image=manifest.first_image,
            images=manifest.images,
            told=json.dumps({"name": manifest.name, "index": manifest.index, "reason": reason}),
            consumed=consumed,
        )
        return int(unless_refused(answer, attempt))

    def consumed(self, attempt: Attempt, *, shards: int, images: int) -> None:
        """Tells how many shards and images the distiller has taken, which lets synthesis go on."""
        unless_refused(_consumed(self._redis, attempt.caller, shards=shards, images=images), attempt)

    def used_up(self, job_id: str, until: str) -> UsedUp:
        """Tells which shards the program that trains in a distiller's place has used up; lets synthesis go on.

        Args:
            job_id: of the job.
            until: place of the last of them. One before the place that is known changes nothing; one behind the newest
                shard stands for that.

        Raises:
            KeyError: there is no such job.
            NotExternal: no other program trains on its images.
        """
        # As for ``read``; a range would end with the last entry of that millisecond.
        last = until if "-" in until else f"{until}-0"
        outcome, *place = _used_up(self._redis, Caller(job_id), stream=keys.shards(job_id), last=last)
        if outcome == "missing":
            raise KeyError(job_id)
        if outcome == "not external":
            raise NotExternal(job_id)
        return UsedUp(*place)

    def backlog(self, job_id: str) -> Backlog:
        """Announced minus consumed shards. Zero where no distiller, and no other program, will come any more."""
        answer = _backlog(self._redis, Caller(job_id), dead_after_seconds=self._lease_seconds)
        return Backlog(answer[0], bool(answer[1]))


def _flatten(entries: list[Any]) -> list[Any]:
    is_wrapped = bool(entries) and isinstance(entries[0], list) and isinstance(entries[0][0], (list, tuple))
    return list(entries[0]) if is_wrapped else entries
