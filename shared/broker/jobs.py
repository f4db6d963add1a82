"""Creating, reading and cancelling jobs: the client's side of the broker."""

import hashlib
import json
import time
from collections.abc import Iterator

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.scripts import Script
from shared.jobs import JobRecord, Role, State, new_job_id, record_from_fields, task_totals
from shared.specs import JobSpec

# ARGV: 3 id, 4 name, 5 metadata, 6 spec, 7 tasks as JSON [[task, total], …], 8 most unfinished jobs, 9 digest of
# the request or '', 10 seconds to remember it. KEYS 7: all jobs, 8: what the idempotency key made, where there is one.
_CREATE = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return ARGV[3] end
if ARGV[9] ~= '' then
  local made = redis.call('HMGET', KEYS[8], 'job', 'request')
  if made[1] then return made[2] == ARGV[9] and made[1] or 'conflict' end
end
if redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[8]) then return 'full' end
local names = {}
for index, each in ipairs(cjson.decode(ARGV[7])) do names[index] = each[1] end
redis.call('HSET', KEYS[1], 'id', ARGV[3], 'name', ARGV[4], 'metadata', ARGV[5], 'spec', ARGV[6],
           'state', 'queued', 'created_at', now(), 'tasks', cjson.encode(names))
redis.call('ZADD', KEYS[7], 0, ARGV[3])
redis.call('SADD', KEYS[5], ARGV[3])
for _, each in ipairs(cjson.decode(ARGV[7])) do
  local partition = string.match(each[1], ':(%d+)$')
  local entry = redis.call('XADD', queue_of(each[1]), '*', 'job', ARGV[3], 'partition', partition)
  redis.call('HSET', KEYS[1], each[1] .. ':state', 'queued', each[1] .. ':entry', entry,
             each[1] .. ':total', each[2], each[1] .. ':done', 0)
end
event('job_created', '')
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[8], 'job', ARGV[3], 'request', ARGV[9])
  set('idempotency_key', KEYS[8])
  redis.call('EXPIRE', KEYS[8], ARGV[10])
end
return ARGV[3]
""")

_CANCEL = Script("""
local state = get('state')
if not state then return 'missing' end
if is_final(state) then return 'final' end
if state ~= 'cancelling' then
  set('state', 'cancelling')
  event('cancel_requested', '')
end
cancel_queued_tasks()
settle_cancellation()
return 'ok'
""")


class QueueFull(Exception):
    """As many unfinished jobs as the deployment allows are waiting already."""


class IdempotencyConflict(Exception):
    """The idempotency key was used for another specification."""


class JobFinished(Exception):
    """The job is in a final state, so the request comes too late."""


class Jobs:
    """Jobs as clients see them."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def create(self, spec: JobSpec, *, max_unfinished: int = 10_000, idempotency_key: str | None = None) -> JobRecord:
        """Stores a job and queues all of its tasks, atomically.

        Args:
            spec: what to do.
            max_unfinished: most jobs that may be unfinished at a time.
            idempotency_key: with the same key, the same specification gives the same job for a day.

        Raises:
            QueueFull: there are ``max_unfinished`` unfinished jobs.
            IdempotencyConflict: the key came with another specification before.
        """
        job_id = new_job_id()
        described = spec.model_dump_json()
        request = _digest(described) if idempotency_key is not None else ""
        totals = [[str(task), total] for task, total in task_totals(spec).items()]
        outcome = _CREATE(
            self._redis,
            [*keys.of_job(job_id), keys.JOBS, keys.idempotency(_digest(idempotency_key or ""))],
            "",
            "",
            job_id,
            spec.name,
            json.dumps(spec.metadata),
            described,
            json.dumps(totals),
            max_unfinished,
            request,
            keys.IDEMPOTENCY_SECONDS,
        )
        if outcome == "full":
            raise QueueFull
        if outcome == "conflict":
            raise IdempotencyConflict(idempotency_key)
        return self.get(outcome)

    def get(self, job_id: str) -> JobRecord:
        """One job, in one round trip.

        Raises:
            KeyError: there is no such job.
        """
        fields = self._redis.hgetall(keys.job(job_id))
        if not fields:
            raise KeyError(job_id)
        return record_from_fields(fields)

    def list(
        self, *, after: str | None = None, limit: int = 20, state: State | None = None, name: str | None = None
    ) -> tuple[list[JobRecord], bool]:
        """Jobs from newest to oldest, and whether there are more.

        Args:
            after: id of the last job of the page before.
            limit: most jobs to return.
            state: only jobs in this state.
            name: only jobs whose name contains this, ignoring case.
        """
        found: list[JobRecord] = []
        for record in self._newest_first(after, page=max(limit + 1, 50)):
            if state not in (None, record.state) or (name and name.lower() not in record.name.lower()):
                continue
            if len(found) == limit:
                return found, True
            found.append(record)
        return found, False

    def _newest_first(self, after: str | None, page: int) -> Iterator[JobRecord]:
        """All jobs before ``after``, two round trips a page."""
        upper = f"({after}" if after else "+"
        while True:
            ids = self._redis.zrange(keys.JOBS, upper, "-", desc=True, bylex=True, offset=0, num=page)
            with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in ids:
                    pipeline.hgetall(keys.job(job_id))
                for fields in pipeline.execute():
                    if fields:
                        yield record_from_fields(fields)
            if len(ids) < page:
                return
            upper = f"({ids[-1]}"

    def cancel(self, job_id: str) -> JobRecord:
        """Asks a job to stop; what was made so far stays.

        Queued tasks end at once, running ones as soon as their workers notice (one heartbeat).

        Raises:
            KeyError: there is no such job.
            JobFinished: it is in a final state.
        """
        outcome = _CANCEL(self._redis, keys.of_job(job_id), "")
        if outcome == "missing":
            raise KeyError(job_id)
        if outcome == "final":
            raise JobFinished(job_id)
        return self.get(job_id)

    def synthesis_is_complete(self, job_id: str) -> bool:
        """Whether every synthesis task has succeeded, so that no further shard will come."""
        partitions = self.get(job_id).stages.synthesis
        return partitions is None or partitions.state is State.SUCCEEDED

    def shards_consumed(self, job_id: str) -> int:
        """Shards that the distiller has taken and that still count."""
        return int(self._redis.hget(keys.job(job_id), "shards_consumed") or 0)

    def queue_depths(self) -> dict[Role, int]:
        """Entries of each queue that wait or are being worked on."""
        return {role: self._redis.xlen(keys.queue(role)) for role in Role}

    def ping(self) -> float:
        """Round-trip seconds to the server. Raises redis.RedisError when it does not answer."""
        started = time.perf_counter()
        self._redis.ping()
        return time.perf_counter() - started


def _digest(text: str) -> str:
    """Stands for a text of any length, also where the text itself should not be readable."""
    return hashlib.sha256(text.encode()).hexdigest()
