"""How jobs leave Redis, and what is known of those that have ended but are not tidied up.

Deleting is one script: keys, queue entries and the place in the list go together, and what remains is the id
in a set, until the job's files are gone too. See ``shared.worker.retention`` for the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.refusals import JobUnfinished
from shared.broker.scripts import Caller, job_script, script
from shared.jobs import Role


@job_script(
    """
local state = get('state')
if not state then return 'missing' end
if not is_final(state) then return 'unfinished' end
if is_held(dead_after_seconds) then return 'held' end
for _, each in ipairs(tasks()) do drop_entry(each) end
leave_lists()
withdraw_webhook()
redis.call('ZREM', all_jobs, job_id)
redis.call('SREM', KEYS[5], job_id)
redis.call('SREM', KEYS[6], job_id)
redis.call('SADD', deleted, job_id)
redis.call('UNLINK', KEYS[1], KEYS[2], unpack(own))
return 'ok'
""",
    even_when_full=True,
)
def _delete(*, all_jobs: Key, deleted: Key, own: Sequence[Key], dead_after_seconds: float) -> str:
    """``own``: all other keys that only this job has."""
    ...


@job_script("""
local state = get('state')
if not state then return {'gone'} end
if not is_final(state) or is_held(dead_after_seconds) then return {''} end
local needed = {}
if state ~= 'succeeded' then
  for _, each in ipairs(tasks()) do
    local checkpoint = get(each .. ':checkpoint')
    if checkpoint then needed[#needed + 1] = cjson.decode(checkpoint).name end
  end
  needed[#needed + 1] = redis.call('HGET', student, 'name') or nil
end
return {'ended', get('finished_at'), unpack(needed)}
""")
def _at_rest(*, student: Key, dead_after_seconds: float) -> list[str]:
    """Answers with what a retry would go on from; a job that has succeeded has no use for it any more."""
    ...


@job_script("""
if get('finished_at') == finished_at then
  redis.call('SREM', KEYS[6], job_id)
  redis.call('ZADD', tidy_again, tonumber(now()) + again_seconds, job_id)
end
""")
def _is_tidy(*, tidy_again: Key, finished_at: str, again_seconds: float) -> None:
    """A job that was retried and has ended again is untidy again."""


@script("""
redis.call('SREM', deleted, job_id)
redis.call('ZADD', tidy_again, redis.call('TIME')[1] + again_seconds, job_id)
""")
def _files_are_deleted(*, deleted: Key, tidy_again: Key, job_id: str, again_seconds: float) -> None: ...


@script("return redis.call('ZRANGEBYSCORE', tidy_again, '-inf', redis.call('TIME')[1])")
def _due(*, tidy_again: Key) -> list[str]: ...


@script("""
local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', queue, group)) do
  local fields = {}
  for place = 1, #consumer, 2 do fields[consumer[place]] = consumer[place + 1] end
  if fields['pending'] == 0 and fields['idle'] > idle_seconds * 1000 then
    redis.call('XGROUP', 'DELCONSUMER', queue, group, fields['name'])
    removed = removed + 1
  end
end
return removed
""")
def _forget_consumers(*, queue: Key, group: str, idle_seconds: float) -> int:
    """Asking and removing are one step, as a removed consumer's claims go too."""
    ...


TIDY_AGAIN_SECONDS = 3600.0
"""After which a job's files are looked at once more. A worker that was frozen for longer clears up after itself."""


@dataclass(frozen=True)
class AtRest:
    """A job that has ended."""

    id: str
    finished_at: str
    needed: frozenset[str]
    """Names of the working files from which a retry would go on."""


class Retention:
    """Deleted and ended jobs."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def delete(self, job_id: str, *, lease_seconds: float) -> None:
        """Removes a finished job from Redis, in one step, and notes that its files have to go.

        Args:
            job_id: of the job.
            lease_seconds: silence after which a worker that still holds one of its tasks counts as dead.

        Raises:
            KeyError: there is no such job.
            JobUnfinished: it has not ended, or a worker is just about to let go of it.
        """
        used: Key | None = self._redis.hget(keys.job(job_id), "idempotency_key")
        # A job without an idempotency key has one name twice in the list, which harms nobody.
        own = [
            used or keys.student(job_id),
            keys.shards(job_id),
            keys.student(job_id),
            keys.metrics(job_id),
            keys.metrics_overview(job_id),
            keys.metrics_open(job_id),
        ]
        outcome = _delete(
            self._redis,
            Caller(job_id),
            all_jobs=keys.JOBS,
            deleted=keys.DELETED,
            own=own,
            dead_after_seconds=lease_seconds,
        )
        if outcome == "missing":
            raise KeyError(job_id)
        if outcome != "ok":
            raise JobUnfinished(job_id)

    def deleted(self) -> list[str]:
        """Ids of deleted jobs whose files may still be there."""
        return sorted(self._redis.smembers(keys.DELETED))

    def files_are_deleted(self, job_id: str) -> None:
        """Notes that nothing is left of a deleted job, for now: a worker that was presumed dead may still wake up."""
        _files_are_deleted(
            self._redis,
            deleted=keys.DELETED,
            tidy_again=keys.TIDY_AGAIN,
            job_id=job_id,
            again_seconds=TIDY_AGAIN_SECONDS,
        )

    def due_again(self) -> list[str]:
        """Ids of jobs, ended or gone, that were tidied so long ago that all their workers have woken up or are dead."""
        return _due(self._redis, tidy_again=keys.TIDY_AGAIN)

    def is_tidy_for_good(self, job_id: str) -> None:
        """Notes that nobody needs to look at an ended or deleted job any more."""
        self._redis.zrem(keys.TIDY_AGAIN, job_id)

    def untidy(self) -> list[str]:
        """Ids of jobs that have ended and may have left working files."""
        return sorted(self._redis.smembers(keys.UNTIDY))

    def at_rest(self, job_id: str, *, lease_seconds: float) -> AtRest | None:
        """A job that has ended and that no living worker holds; None for every other."""
        state, *more = _at_rest(
            self._redis, Caller(job_id), student=keys.student(job_id), dead_after_seconds=lease_seconds
        )
        if state == "gone":
            self._redis.srem(keys.UNTIDY, job_id)
        return AtRest(job_id, more[0], frozenset(more[1:])) if state == "ended" else None

    def is_tidy(self, job: AtRest) -> None:
        """Notes that an ended job has left nothing behind, unless it was retried meanwhile."""
        _is_tidy(
            self._redis,
            Caller(job.id),
            tidy_again=keys.TIDY_AGAIN,
            finished_at=job.finished_at,
            again_seconds=TIDY_AGAIN_SECONDS,
        )

    def may_sweep(self, every_seconds: float) -> bool:
        """Whether it is the caller's turn to tidy up; of all callers, one in each period."""
        return bool(self._redis.set(keys.SWEEPER, "1", nx=True, px=int(every_seconds * 1000)))

    def forget_consumers(self, *, idle_seconds: float) -> int:
        """Removes the consumers of long-gone workers from the queues, and returns how many."""
        return sum(
            _forget_consumers(self._redis, queue=keys.queue(role), group=keys.GROUP, idle_seconds=idle_seconds)
            for role in Role
            if self._redis.exists(keys.queue(role)) and self._redis.xinfo_groups(keys.queue(role))
        )
