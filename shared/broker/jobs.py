"""Creating, reading, cancelling and retrying jobs: the client's side of the broker."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence

from shared.api_keys import Allowance
from shared.broker import keys
from shared.broker.allowances import REFUSED
from shared.broker.connection import Client
from shared.broker.job_list import JobList
from shared.broker.keys import Key
from shared.broker.refusals import (
    AllowanceUsed,
    IdempotencyConflict,
    JobFinished,
    JobSucceeded,
    JobUnfinished,
    ModelMissing,
    QueueFull,
)
from shared.broker.scripts import Caller, job_script
from shared.jobs import JobRecord, Role, State, new_job_id, record_from_fields, task_totals
from shared.specs import JobSpec
from shared.specs.estimates import estimate
from shared.specs.named_files import named_checkpoints
from shared.storage.model_paths import model_of


@job_script(f"""
{REFUSED}
if redis.call('EXISTS', KEYS[1]) == 1 then return job_id end
if request then
  local made = redis.call('HMGET', idempotency, 'job', 'request')
  if made[1] then return made[2] == request and made[1] or 'conflict' end
end
if redis.call('SCARD', KEYS[5]) >= max_unfinished then return 'full' end
local refusal = refused(owner, all_models, allowance, reserved_bytes)
if refusal then return refusal end
for index = 1, #models, 2 do
  if redis.call('EXISTS', models[index]) == 0 then return 'no model' end
end
for index = 2, #models, 2 do redis.call('SADD', models[index], job_id) end
local names = {{}}
for index, each in ipairs(totals) do names[index] = each[1] end
if consumed_until then set('consumed_until', consumed_until) end
redis.call('HSET', KEYS[1], 'id', job_id, 'name', name, 'name_folded', name_folded, 'metadata', metadata, 'spec', spec,
           'owner', owner, 'reserved_bytes', reserved_bytes, 'created_at', now(), 'tasks', cjson.encode(names))
enter('queued')
redis.call('ZADD', all_jobs, 0, job_id)
if owner ~= '' then redis.call('ZADD', of_owner, 0, job_id) end
redis.call('SADD', KEYS[5], job_id)
for _, each in ipairs(totals) do
  local partition = string.match(each[1], ':(%d+)$')
  local entry = redis.call('XADD', queue_of(each[1]), '*', 'job', job_id, 'partition', partition)
  redis.call('HSET', KEYS[1], each[1] .. ':state', 'queued', each[1] .. ':entry', entry,
             each[1] .. ':total', each[2], each[1] .. ':done', 0)
end
event('job_created', '')
if request then
  redis.call('HSET', idempotency, 'job', job_id, 'request', request)
  set('idempotency_key', idempotency)
  redis.call('EXPIRE', idempotency, remember_seconds)
end
return job_id
""")
def _create(
    *,
    all_jobs: Key,
    all_models: Key,
    idempotency: Key,
    of_owner: Key,
    models: Sequence[Key],
    name: str,
    name_folded: str,
    metadata: str,
    spec: str,
    owner: str,
    consumed_until: str | None,
    totals: list[tuple[str, int]],
    max_unfinished: int,
    allowance: Mapping[str, int],
    reserved_bytes: int,
    request: str | None,
    remember_seconds: int,
) -> str:
    """Answers with the id of the job, or why there is none.

    ``models``: of each that the job refers to its key and that of its jobs. ``totals``: tasks and their units of work.
    ``request``: digest of what came with the idempotency key.
    """
    ...


@job_script(
    """
local state = get('state')
if not state then return 'missing' end
if is_final(state) then return 'final' end
if state ~= 'cancelling' then
  enter('cancelling')
  event('cancel_requested', '')
end
cancel_queued_tasks()
settle_cancellation()
return 'ok'
""",
    even_when_full=True,
)
def _cancel() -> str: ...


@job_script(f"""
{REFUSED}
local state = get('state')
if not state then return 'missing' end
if get('retry_token') == request then return 'ok' end
if state == 'succeeded' then return 'succeeded' end
if not is_final(state) then return 'unfinished' end
if redis.call('SCARD', KEYS[5]) >= max_unfinished then return 'full' end
local refusal = refused(get('owner') or '', all_models, allowance, 0)
if refusal then return refusal end
local queued = {{}}
for _, each in ipairs(tasks()) do
  local task_state = get(each .. ':state')
  if task_state ~= 'succeeded' then
    if task_state == 'running' then
      drop_entry(each)
      event('attempt_released', each, cjson.encode({{worker = get(each .. ':worker'), reason = 'job retried'}}))
    end
    local entry = redis.call('XADD', queue_of(each), '*', 'job', job_id, 'partition', string.match(each, ':(%d+)$'))
    redis.call('HSET', KEYS[1], each .. ':state', 'queued', each .. ':entry', entry, each .. ':failures', 0,
               each .. ':forgiven', 0)
    redis.call('HDEL', KEYS[1], each .. ':token', each .. ':worker', each .. ':rate', each .. ':finished_at',
               each .. ':error', each .. ':parked')
    queued[#queued + 1] = each
  end
end
enter('queued')
redis.call('HSET', KEYS[1], 'retry_token', request, 'damaged', 0)
redis.call('HDEL', KEYS[1], 'finished_at', 'error')
withdraw_webhook()
redis.call('SADD', KEYS[5], job_id)
redis.call('SREM', KEYS[6], job_id)
local retries = redis.call('HINCRBY', KEYS[1], 'retries', 1)
event('job_retried', '', cjson.encode({{retries = retries, tasks = queued, ended = state}}))
return 'ok'
""")
def _retry(*, all_models: Key, request: str, max_unfinished: int, allowance: Mapping[str, int]) -> str:
    """Attempts go on counting, since file names hold their numbers.

    A worker that has not heard yet that the job had ended loses its task: what it still meets, such as the very error
    that is mended by now, must not end the job once more.
    """
    ...


class Jobs:
    """Jobs as clients see them."""

    def __init__(self, client: Client) -> None:
        self._redis = client
        self._list = JobList(client)

    def create(
        self,
        spec: JobSpec,
        *,
        owner: str | None = None,
        max_unfinished: int = 10_000,
        allowance: Allowance | None = None,
        idempotency_key: str | None = None,
    ) -> JobRecord:
        """Stores a job and queues all of its tasks, atomically.

        Args:
            spec: what to do.
            owner: name of the API key that asks for it.
            max_unfinished: most jobs that may be unfinished at a time.
            allowance: most that the owner may have at a time, this job included.
            idempotency_key: of the owner's choice; with the same one, the same specification gives the same job
                for a day.

        Raises:
            QueueFull: there are ``max_unfinished`` unfinished jobs.
            AllowanceUsed: the owner has as much as the allowance says.
            IdempotencyConflict: the key came with another specification before.
            ModelMissing: an uploaded checkpoint that it refers to is gone.
        """
        job_id = new_job_id()
        described = spec.model_dump_json()
        outcome = _create(
            self._redis,
            Caller(job_id),
            all_jobs=keys.JOBS,
            all_models=keys.MODELS,
            idempotency=keys.idempotency(_digest(json.dumps([owner, idempotency_key]))),
            of_owner=keys.of_owner(owner or ""),
            models=[key for model in _models_of(spec) for key in (keys.model(model), keys.model_jobs(model))],
            name=spec.name,
            name_folded=spec.name.lower(),
            metadata=json.dumps(spec.metadata),
            spec=described,
            owner=owner or "",
            consumed_until=keys.NO_ENTRY if spec.external else None,
            totals=[(str(task), total) for task, total in task_totals(spec).items()],
            max_unfinished=max_unfinished,
            allowance=(allowance or Allowance()).model_dump(exclude_none=True),
            reserved_bytes=estimate(spec).bytes or 0,
            request=_digest(described) if idempotency_key is not None else None,
            remember_seconds=keys.IDEMPOTENCY_SECONDS,
        )
        if outcome == "full":
            raise QueueFull
        if outcome in Allowance.model_fields:
            raise AllowanceUsed(outcome)
        if outcome == "conflict":
            raise IdempotencyConflict(idempotency_key)
        if outcome == "no model":
            raise ModelMissing
        return self.get(outcome)

    def exists(self, job_id: str) -> bool:
        """Whether there is such a job."""
        return bool(self._redis.exists(keys.job(job_id)))

    def get(self, job_id: str) -> JobRecord:
        """One job, in one round trip.

        Raises:
            KeyError: there is no such job.
        """
        fields = self._redis.hgetall(keys.job(job_id))
        if not fields:
            raise KeyError(job_id)
        return record_from_fields(fields)

    def owner(self, job_id: str) -> str | None:
        """Name of the API key that started a job, without reading the rest. Raises KeyError if there is none."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.exists(keys.job(job_id))
            pipeline.hget(keys.job(job_id), "owner")
            exists, owner = pipeline.execute()
        if not exists:
            raise KeyError(job_id)
        return owner or None

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        state: State | None = None,
        name: str | None = None,
        owner: str | None = None,
    ) -> tuple[list[JobRecord], bool]:
        """Jobs from newest to oldest, and whether there are more.

        Args:
            after: id of the last job of the page before.
            limit: most jobs to return.
            state: only jobs in this state.
            name: only jobs whose name contains this, ignoring case.
            owner: only jobs that this API key started.
        """
        return self._list.page(after=after, limit=limit, state=state, name=name, owner=owner)

    def cancel(self, job_id: str) -> JobRecord:
        """Asks a job to stop; what was made so far stays.

        Queued tasks end at once, running ones as soon as their workers notice (one heartbeat).

        Raises:
            KeyError: there is no such job.
            JobFinished: it is in a final state.
        """
        outcome = _cancel(self._redis, Caller(job_id))
        if outcome == "missing":
            raise KeyError(job_id)
        if outcome == "final":
            raise JobFinished(job_id)
        return self.get(job_id)

    def retry(self, job_id: str, *, max_unfinished: int = 10_000, allowance: Allowance | None = None) -> JobRecord:
        """Lets a failed or cancelled job go on from where its tasks last left a checkpoint.

        What is done stays done: tasks that have succeeded, shards that count, checkpoints. The failures that
        brought it down are forgiven, and workers that have not let go of it yet lose their tasks. Of several
        requests at once one succeeds.

        Args:
            job_id: of the job.
            max_unfinished: most jobs that may be unfinished at a time.
            allowance: most that its owner may have at a time.

        Raises:
            AllowanceUsed: the owner has as much as the allowance says.
            KeyError: there is no such job.
            JobSucceeded: there is nothing left to do.
            JobUnfinished: it has not ended.
            QueueFull: there are ``max_unfinished`` unfinished jobs.
        """
        # The token makes the command harmless when it is sent again because its answer was lost.
        token = secrets.token_hex(16)
        outcome = _retry(
            self._redis,
            Caller(job_id),
            all_models=keys.MODELS,
            request=token,
            max_unfinished=max_unfinished,
            allowance=(allowance or Allowance()).model_dump(exclude_none=True),
        )
        if outcome in Allowance.model_fields:
            raise AllowanceUsed(outcome)
        if outcome == "missing":
            raise KeyError(job_id)
        if outcome == "succeeded":
            raise JobSucceeded(job_id)
        if outcome == "unfinished":
            raise JobUnfinished(job_id)
        if outcome == "full":
            raise QueueFull
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

    def check_writable(self) -> None:
        """Writes. Raises redis.RedisError when the server does not answer, is full, or only reads."""
        self._redis.set(keys.PROBE, "1", ex=60)


def _models_of(spec: JobSpec) -> Iterator[str]:
    """The uploaded checkpoints that a job loads."""
    for _, checkpoint in named_checkpoints(spec):
        if (model := model_of(checkpoint)) is not None:
            yield model


def _digest(text: str) -> str:
    """Stands for a text of any length, also where the text itself should not be readable."""
    return hashlib.sha256(text.encode()).hexdigest()
