"""How jobs leave Redis, and what is known of those that have ended but are not tidied up.

Deleting is one script: keys, queue entries and the place in the list go together, and what remains is the id
in a set, until the job's files are gone too. See ``shared.worker.retention`` for the files.
"""

from dataclasses import dataclass

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.refusals import JobUnfinished
from shared.broker.scripts import Script
from shared.jobs import Role

# ARGV: 3 id, 4 seconds of silence after which a worker is dead. KEYS 7: all jobs, 8: deleted jobs, 9: what the job's
# idempotency key made, 10 and following: all else that only this job has.
_DELETE = Script("""
local state = get('state')
if not state then return 'missing' end
if not is_final(state) then return 'unfinished' end
if is_held(tonumber(ARGV[4])) then return 'held' end
for _, each in ipairs(tasks()) do drop_entry(each) end
tally('jobs:' .. state, -1)
redis.call('ZREM', KEYS[7], ARGV[3])
redis.call('SREM', KEYS[5], ARGV[3])
redis.call('SREM', KEYS[6], ARGV[3])
redis.call('SADD', KEYS[8], ARGV[3])
redis.call('UNLINK', KEYS[1], KEYS[2], unpack(KEYS, 9))
return 'ok'
""")

# ARGV: 3 seconds of silence after which a worker is dead. KEYS 7: newest student snapshot. Answers with what a retry
# would go on from; a job that has succeeded has no use for it any more.
_AT_REST = Script("""
local state = get('state')
if not state then return {'gone'} end
if not is_final(state) or is_held(tonumber(ARGV[3])) then return {''} end
local needed = {}
if state ~= 'succeeded' then
  for _, each in ipairs(tasks()) do
    local checkpoint = get(each .. ':checkpoint')
    if checkpoint then needed[#needed + 1] = cjson.decode(checkpoint).name end
  end
  needed[#needed + 1] = redis.call('HGET', KEYS[7], 'name') or nil
end
return {'ended', get('finished_at'), unpack(needed)}
""")

# ARGV: 3 id, 4 when it had ended. A job that was retried and has ended again is untidy again.
_IS_TIDY = Script("""
if get('finished_at') == ARGV[4] then redis.call('SREM', KEYS[6], ARGV[3]) end
""")

# ARGV: 1 group, 2 idle milliseconds. Asking and removing are one step, as a removed consumer's claims go too.
_FORGET_CONSUMERS = """
local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local fields = {}
  for place = 1, #consumer, 2 do fields[consumer[place]] = consumer[place + 1] end
  if fields['pending'] == 0 and fields['idle'] > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], fields['name'])
    removed = removed + 1
  end
end
return removed
"""


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
        used = self._redis.hget(keys.job(job_id), "idempotency_key")
        # A job without an idempotency key has one name twice in the list, which harms nobody.
        own = [
            used or keys.student(job_id),
            keys.shards(job_id),
            keys.student(job_id),
            keys.metrics(job_id),
            keys.metrics_overview(job_id),
            keys.metrics_open(job_id),
        ]
        outcome = _DELETE(
            self._redis, [*keys.of_job(job_id), keys.JOBS, keys.DELETED, *own], "", "", job_id, lease_seconds
        )
        if outcome == "missing":
            raise KeyError(job_id)
        if outcome != "ok":
            raise JobUnfinished(job_id)

    def deleted(self) -> list[str]:
        """Ids of deleted jobs whose files may still be there."""
        return sorted(self._redis.smembers(keys.DELETED))

    def files_are_deleted(self, job_id: str) -> None:
        """Notes that nothing is left of a deleted job."""
        self._redis.srem(keys.DELETED, job_id)

    def untidy(self) -> list[str]:
        """Ids of jobs that have ended and may have left working files."""
        return sorted(self._redis.smembers(keys.UNTIDY))

    def at_rest(self, job_id: str, *, lease_seconds: float) -> AtRest | None:
        """A job that has ended and that no living worker holds; None for every other."""
        state, *more = _AT_REST(self._redis, [*keys.of_job(job_id), keys.student(job_id)], "", "", lease_seconds)
        if state == "gone":
            self._redis.srem(keys.UNTIDY, job_id)
        return AtRest(job_id, more[0], frozenset(more[1:])) if state == "ended" else None

    def is_tidy(self, job: AtRest) -> None:
        """Notes that an ended job has left nothing behind, unless it was retried meanwhile."""
        _IS_TIDY(self._redis, keys.of_job(job.id), "", "", job.id, job.finished_at)

    def may_sweep(self, every_seconds: float) -> bool:
        """Whether it is the caller's turn to tidy up; of all callers, one in each period."""
        return bool(self._redis.set(keys.SWEEPER, "1", nx=True, px=int(every_seconds * 1000)))

    def forget_consumers(self, *, idle_seconds: float) -> int:
        """Removes the consumers of long-gone workers from the queues, and returns how many."""
        return sum(
            int(self._redis.eval(_FORGET_CONSUMERS, 1, keys.queue(role), keys.GROUP, int(idle_seconds * 1000)))
            for role in Role
            if self._redis.exists(keys.queue(role)) and self._redis.xinfo_groups(keys.queue(role))
        )
