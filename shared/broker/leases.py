"""Leases: who works on which task, for how long, and what happens when nobody is heard of any more.

A worker *claims* a queue entry, which starts an *attempt* with a fresh token. While it works, a heartbeat
renews the claim; an entry that was not renewed for ``lease_seconds`` is claimed by the next idle worker,
whose attempt replaces the token. From then on every script refuses the old one (``LeaseLost``), so a
worker that was merely paused cannot change the job. A claim that is given back keeps its place at the
head of the queue: an older job is always served first, which rules out two jobs waiting on each other.
"""

import json
import secrets

from redis.exceptions import ResponseError

from shared.broker import keys
from shared.broker.attempts import Attempt, unless_refused
from shared.broker.connection import BLOCK_SECONDS, Client
from shared.broker.keys import Key
from shared.broker.scripts import Caller, job_script, script
from shared.errors import UserError
from shared.jobs import JobError, Role, Task


@job_script("""
local function gone()
  redis.call('XACK', queue_of(task), GROUP, entry)
  redis.call('XDEL', queue_of(task), entry)
  return 0
end
local state, task_state = get('state'), get(task .. ':state')
if not state or not task_state or get(task .. ':entry') ~= entry then return gone() end
if get(task .. ':token') == token and task_state == 'running' then return tonumber(get(task .. ':attempt')) end
if is_final(task_state) then return gone() end
if task_state == 'running' then
  -- Being handed the entry is not enough: only silence makes a worker dead, whatever became of the entry.
  if tonumber(now()) - tonumber(get(task .. ':heartbeat_at')) < dead_after_seconds then return 0 end
  local lost = {worker = get(task .. ':worker'), attempt = tonumber(get(task .. ':attempt'))}
  event('attempt_lost', task, cjson.encode(lost))
  if is_final(state) or state == 'cancelling' then
    end_task(task, 'cancelled')
    settle_cancellation()
    return 0
  end
  if redis.call('HINCRBY', KEYS[1], task .. ':failures', 1) >= max_failures then
    local role = string.match(task, '^(%a+):')
    fail_job(task, cjson.encode({code = 'worker_lost', message = message, stage = role}))
    return 0
  end
elseif is_final(state) or state == 'cancelling' then
  end_task(task, 'cancelled')
  settle_cancellation()
  return 0
end
local attempt = redis.call('HINCRBY', KEYS[1], task .. ':attempt', 1)
local time = now()
redis.call('HSET', KEYS[1], task .. ':token', token, task .. ':state', 'running', task .. ':worker', worker,
           task .. ':heartbeat_at', time)
redis.call('HSETNX', KEYS[1], task .. ':started_at', time)
redis.call('HDEL', KEYS[1], task .. ':rate')
redis.call('HSETNX', KEYS[1], 'started_at', time)
if state == 'queued' then enter('running') end
event('attempt_started', task, cjson.encode({worker = worker, attempt = attempt}))
return attempt
""")
def _start(*, worker: str, entry: str, max_failures: int, message: str, dead_after_seconds: float) -> int:
    """The number of the new attempt; 0 where there is none to start. ``message`` is of a job whose workers vanish."""
    ...


@job_script("""
if not holds() then return 'lost' end
redis.call('XCLAIM', queue_of(task), GROUP, worker, 0, entry, 'JUSTID')
set(task .. ':heartbeat_at', now())
if done then advance(done) end
if rate then set(task .. ':rate', rate) end
local state = get('state')
if state == 'cancelling' or is_final(state) then return 'stop' end
return 'go'
""")
def _renew(*, worker: str, entry: str, done: int | None, rate: float | None) -> str: ...


@job_script("""
if not holds() then return 'lost' end
local state = get('state')
if state == 'cancelling' or is_final(state) then
  end_task(task, 'cancelled')
  settle_cancellation()
  return 'ok'
end
if error_json then
  set(task .. ':error', error_json)
  event('attempt_failed', task, error_json)
  if redis.call('HINCRBY', KEYS[1], task .. ':failures', 1) >= max_failures then
    fail_job(task, error_json)
    return 'ok'
  end
else
  event('attempt_released', task, cjson.encode({worker = worker, reason = reason}))
end
set(task .. ':state', 'queued')
redis.call('HDEL', KEYS[1], task .. ':token', task .. ':worker', task .. ':rate')
redis.call('XCLAIM', queue_of(task), GROUP, NOBODY, 0, entry, 'IDLE', idle_ms, 'JUSTID')
return 'ok'
""")
def _give_back(*, worker: str, entry: str, reason: str, error_json: str | None, max_failures: int, idle_ms: int) -> str:
    """``idle_ms`` to begin with: those of a day make the entry look expired, so that it is the first to be claimed."""
    ...


@job_script("""
if not holds() then return 'lost' end
fail_job(task, error_json)
return 'ok'
""")
def _fail(*, error_json: str) -> str: ...


@job_script("""
if get(task .. ':token') == token and get(task .. ':state') == 'succeeded' then return 'ok' end
if not holds() then return 'lost' end
local state = get('state')
if state == 'cancelling' or is_final(state) then return 'stop' end
local total = tonumber(get(task .. ':total'))
if string.sub(task, 1, 9) == 'synthesis' and tonumber(get(task .. ':images') or 0) < total then return 'more' end
local is_last = true
for _, each in ipairs(tasks()) do
  if each ~= task and get(each .. ':state') ~= 'succeeded' then is_last = false end
end
if is_last and not folder_completed then return 'last' end
advance(total)
redis.call('HDEL', KEYS[1], task .. ':rate', task .. ':error')
end_task(task, 'succeeded')
event('task_succeeded', task)
if is_last then
  if result_json then set('result', result_json) end
  end_job('succeeded')
end
return 'ok'
""")
def _finish(*, folder_completed: bool, result_json: str | None) -> str:
    """The task that ends last must complete the folder first, so it is told so and asks again."""
    ...


@script(f"""
local from = after and '(' .. after or '-'
while true do
  local expired = redis.call('XPENDING', queue, '{keys.GROUP}', 'IDLE', idle_ms, from, '+', 1)
  if not expired[1] then return nil end
  local claimed = redis.call('XCLAIM', queue, '{keys.GROUP}', worker, idle_ms, expired[1][1])
  if claimed[1] and claimed[1][2] then return claimed[1] end
  -- Its task has ended, and only the claim was left.
  redis.call('XACK', queue, '{keys.GROUP}', expired[1][1])
  from = '(' .. expired[1][1]
end
""")
def _claim_expired(*, queue: Key, worker: str, idle_ms: int, after: str | None) -> tuple[str, list[str]] | None:
    """Answers with the oldest expired entry behind ``after`` and its fields, now the worker's.

    One round trip however many claims are alive, where XAUTOCLAIM needs one for every ten of them.
    """
    ...


DAY_MS = 86_400_000


class Leases:
    """The worker's side of the queues."""

    def __init__(self, client: Client, *, lease_seconds: float, max_attempts: int) -> None:
        self._redis = client
        self.lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def claim(
        self, role: Role, worker: str, *, after: str | None = None, block_seconds: float = BLOCK_SECONDS
    ) -> Attempt | None:
        """The next task of this role, or None when there was none for ``block_seconds``.

        Expired and given-back claims come before new entries.

        Args:
            role: whose queue.
            worker: name of the worker.
            after: an entry to begin the search behind, older ones coming last: for a worker that has let
                another task pass, so that every task gets its turn.
            block_seconds: how long to wait for a new entry.
        """
        try:
            entries: list[tuple[str, dict[str, str]]] = []
            if after is not None:
                entries = self._expired(role, worker, after) or self._new(role, worker, 0.001)
            entries = entries or self._expired(role, worker) or self._new(role, worker, block_seconds)
        except ResponseError as error:
            if "NOGROUP" not in str(error):  # of a script, older servers tell it in the middle of a sentence
                raise
            self._create_group(role)
            return None
        for entry, fields in entries:
            attempt = self._start(role, worker, entry, fields)
            if attempt is not None:
                return attempt
        return None

    def _expired(self, role: Role, worker: str, after: str | None = None) -> list[tuple[str, dict[str, str]]]:
        """The oldest expired entry, from behind ``after`` on."""
        idle_ms = int(self.lease_seconds * 1000)
        found = _claim_expired(self._redis, queue=keys.queue(role), worker=worker, idle_ms=idle_ms, after=after)
        if not found:
            return []
        entry, fields = found
        return [(entry, dict(zip(fields[::2], fields[1::2], strict=True)))]

    def _new(self, role: Role, worker: str, block_seconds: float) -> list[tuple[str, dict[str, str]]]:
        answer = self._redis.xreadgroup(
            keys.GROUP, worker, {keys.queue(role): ">"}, count=1, block=max(1, int(block_seconds * 1000))
        )
        streams = answer.items() if isinstance(answer, dict) else (answer or [])
        return [tuple(entry) for _, entries in streams for entry in entries]

    def _create_group(self, role: Role) -> None:
        try:
            self._redis.xgroup_create(keys.queue(role), keys.GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _start(self, role: Role, worker: str, entry: str, fields: dict[str, str]) -> Attempt | None:
        job_id, task, token = fields["job"], Task(role, int(fields["partition"])), secrets.token_hex(16)
        message = (
            f"{self._max_attempts} workers in a row vanished while working on {task}, the last being silent for over "
            f"{self.lease_seconds:g} s. Look at the workers' logs; running out of memory is the usual cause."
        )
        number = _start(
            self._redis,
            Caller(job_id, task, token),
            worker=worker,
            entry=entry,
            max_failures=self._max_attempts,
            message=message,
            dead_after_seconds=0.9 * self.lease_seconds,
        )
        if not number:
            return None
        return Attempt(job_id=job_id, task=task, number=int(number), token=token, entry=entry, worker=worker)

    def has_waiting(self, attempt: Attempt, *, only_older: bool) -> bool:
        """Whether another task of this role waits for a worker.

        Args:
            attempt: whose queue, and what older is measured against.
            only_older: look only at claims that have expired or were given back, on older entries.
        """
        queue = keys.queue(attempt.task.role)
        idle = int(self.lease_seconds * 1000)
        last = attempt.entry if only_older else "+"
        pending = self._redis.xpending_range(queue, keys.GROUP, "-", last, 2, idle=idle)
        if any(each["message_id"] != attempt.entry for each in pending):
            return True
        if only_older:
            return False
        delivered = next(
            group["last-delivered-id"] for group in self._redis.xinfo_groups(queue) if group["name"] == keys.GROUP
        )
        return bool(self._redis.xrange(queue, min=f"({delivered}", count=1))

    def renew(self, attempt: Attempt, *, done: int | None = None, rate: float | None = None) -> None:
        """Extends the lease and reports progress, in one round trip.

        Raises:
            LeaseLost: another attempt has the task.
            JobStopped: the job was cancelled or has failed elsewhere.
        """
        answer = _renew(self._redis, attempt.caller, worker=attempt.worker, entry=attempt.entry, done=done, rate=rate)
        unless_refused(answer, attempt)

    def release(self, attempt: Attempt, reason: str, *, let_others_pass: bool = False) -> None:
        """Gives the task back, to be claimed at once by another worker; not counted as a failure.

        A task of a job that is being cancelled ends here instead.

        Args:
            attempt: whose turn ends.
            reason: for the event.
            let_others_pass: leave the task alone for the length of a lease.
        """
        self._give_back(attempt, reason, None, idle_ms=0 if let_others_pass else DAY_MS)

    def retry(self, attempt: Attempt, error: JobError) -> None:
        """Gives the task back after an error; ``max_attempts`` of them without progress fail the job."""
        self._give_back(attempt, error.code, error.model_dump_json())

    def _give_back(self, attempt: Attempt, reason: str, error_json: str | None, idle_ms: int = DAY_MS) -> None:
        answer = _give_back(
            self._redis,
            attempt.caller,
            worker=attempt.worker,
            entry=attempt.entry,
            reason=reason,
            error_json=error_json,
            max_failures=self._max_attempts,
            idle_ms=idle_ms,
        )
        unless_refused(answer, attempt)

    def fail(self, attempt: Attempt, error: UserError) -> None:
        """Fails the job for a reason that trying again cannot mend."""
        described = JobError(code=error.code, message=error.message, stage=attempt.task.role)
        unless_refused(_fail(self._redis, attempt.caller, error_json=described.model_dump_json()), attempt)

    def finish(
        self, attempt: Attempt, *, folder_completed: bool = False, result: dict[str, object] | None = None
    ) -> str:
        """Marks the task as succeeded, and with the last task the job.

        Returns:
            ``ok``: done. ``more``: images are still owed, since a shard was set aside. ``last``: this is the
            job's last task; complete the output folder, then call again with ``folder_completed``.

        Raises:
            LeaseLost, JobStopped: as for ``renew``.
        """
        answer = _finish(
            self._redis,
            attempt.caller,
            folder_completed=folder_completed,
            result_json=json.dumps(result) if result else None,
        )
        unless_refused(answer, attempt)
        return answer
