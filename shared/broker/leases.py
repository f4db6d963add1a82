"""Leases: who works on which task, for how long, and what happens when nobody is heard of any more.

A worker *claims* a queue entry, which starts an *attempt* with a fresh token. While it works, a heartbeat
renews the claim; an entry that was not renewed for ``lease_seconds`` is claimed by the next idle worker,
whose attempt replaces the token. From then on every script refuses the old one (``LeaseLost``), so a
worker that was merely paused cannot change the job. Which tasks can be claimed, ``shared.broker.queues`` says.

After an outage of the server every worker looks silent. So for a moment after its return no task is taken over, and
for a lease no takeover counts as a failure.
"""

import json
import secrets

from redis.exceptions import ResponseError

from shared.broker import keys
from shared.broker.attempts import Attempt, unless_refused
from shared.broker.connection import BLOCK_SECONDS, Client
from shared.broker.keys import Key
from shared.broker.queues import Queues, Waiting, dead_after, outage_gap
from shared.broker.scripts import Caller, job_script
from shared.errors import UserError
from shared.jobs import JobError, Role


@job_script("""
local time = tonumber(now())
local returned_at = tonumber(redis.call('HGET', heard, 'returned_at') or 0)
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
  if time - tonumber(get(task .. ':heartbeat_at')) < dead_after_seconds then return 0 end
  if time - returned_at < grace_seconds then return 0 end
  local lost = {worker = get(task .. ':worker'), attempt = tonumber(get(task .. ':attempt'))}
  event('attempt_lost', task, cjson.encode(lost))
  if is_final(state) or state == 'cancelling' then
    end_task(task, 'cancelled')
    settle_cancellation()
    return 0
  end
  local is_failure = time - returned_at > lease_seconds + grace_seconds
  -- Where there is only one worker, its own end looks like an outage: so that is believed a number of times.
  if not is_failure then
    is_failure = redis.call('HINCRBY', KEYS[1], task .. ':forgiven', 1) > max_forgiven
  end
  if is_failure and redis.call('HINCRBY', KEYS[1], task .. ':failures', 1) >= max_failures then
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
redis.call('HSET', KEYS[1], task .. ':token', token, task .. ':state', 'running', task .. ':worker', worker,
           task .. ':heartbeat_at', now())
redis.call('HSETNX', KEYS[1], task .. ':started_at', now())
redis.call('HDEL', KEYS[1], task .. ':rate', task .. ':parked')
redis.call('HSETNX', KEYS[1], 'started_at', now())
redis.call('XCLAIM', queue_of(task), GROUP, worker, 0, entry, 'JUSTID')
if state == 'queued' then enter('running') end
event('attempt_started', task, cjson.encode({worker = worker, attempt = attempt}))
return attempt
""")
def _start(
    *,
    heard: Key,
    worker: str,
    entry: str,
    max_failures: int,
    max_forgiven: int,
    message: str,
    lease_seconds: float,
    dead_after_seconds: float,
    grace_seconds: float,
) -> int:
    """The number of the new attempt; 0 where there is none to start. ``message`` is of a job whose workers vanish."""
    ...


@job_script("""
if not holds() then return 'lost' end
redis.call('XCLAIM', queue_of(task), GROUP, worker, 0, entry, 'JUSTID')
set(task .. ':heartbeat_at', now())
listen(heard, tonumber(now()), gap_seconds)
if done then advance(done) end
if rate then set(task .. ':rate', rate) end
local state = get('state')
if state == 'cancelling' or is_final(state) then return 'stop' end
return 'go'
""")
def _renew(*, heard: Key, worker: str, entry: str, done: int | None, rate: float | None, gap_seconds: float) -> str: ...


@job_script(
    """
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
if is_parked then set(task .. ':parked', now()) end
redis.call('HDEL', KEYS[1], task .. ':token', task .. ':worker', task .. ':rate')
redis.call('XCLAIM', queue_of(task), GROUP, NOBODY, 0, entry, 'JUSTID')
return 'ok'
""",
    even_when_full=True,
)
def _give_back(
    *, worker: str, entry: str, reason: str, error_json: str | None, max_failures: int, is_parked: bool
) -> str: ...


@job_script(
    """
if not holds() then return 'lost' end
fail_job(task, error_json)
return 'ok'
""",
    even_when_full=True,
)
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


LONGEST_GRACE_SECONDS = 5.0
"""Within it, and within a lease, every worker has found a server again that was away."""


FORGIVEN_FACTOR = 3
"""Times the most attempts: takeovers in a row, without progress, that an outage of the server may explain."""


class Leases:
    """The worker's side of the queues."""

    def __init__(self, client: Client, *, lease_seconds: float, max_attempts: int) -> None:
        self._redis = client
        self._queues = Queues(client, lease_seconds)
        self.lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def claim(self, role: Role, worker: str, *, block_seconds: float | None = None) -> Attempt | None:
        """The next task of this role, or None when there was none for a moment.

        Tasks that workers had before come before new ones.

        Args:
            role: whose queue.
            worker: name of the worker.
            block_seconds: how long to wait for a new task; by default as long as an idle worker may be silent.
        """
        if block_seconds is None:
            block_seconds = min(BLOCK_SECONDS, self.lease_seconds / 5)
        try:
            for waiting in self._queues.returned(role):
                attempt = self._start(worker, waiting)
                if attempt is not None:
                    return attempt
            for waiting in self._queues.new(role, worker, block_seconds):
                attempt = self._start(worker, waiting)
                if attempt is not None:
                    return attempt
        except ResponseError as error:
            if "NOGROUP" not in str(error):  # of a script, older servers tell it in the middle of a sentence
                raise
            self._queues.create_group(role)
        return None

    def _start(self, worker: str, waiting: Waiting) -> Attempt | None:
        job_id, task, token = waiting.job_id, waiting.task, secrets.token_hex(16)
        message = (
            f"{self._max_attempts} workers in a row vanished while working on {task}, the last being silent for over "
            f"{self.lease_seconds:g} s. Look at the workers' logs; running out of memory is the usual cause."
        )
        number = _start(
            self._redis,
            Caller(job_id, task, token),
            heard=keys.HEARD,
            worker=worker,
            entry=waiting.entry,
            max_failures=self._max_attempts,
            max_forgiven=FORGIVEN_FACTOR * self._max_attempts,
            message=message,
            lease_seconds=self.lease_seconds,
            dead_after_seconds=dead_after(self.lease_seconds),
            grace_seconds=min(LONGEST_GRACE_SECONDS, self.lease_seconds),
        )
        if not number:
            return None
        return Attempt(job_id=job_id, task=task, number=number, token=token, entry=waiting.entry, worker=worker)

    def has_waiting(self, attempt: Attempt) -> bool:
        """Whether another task of this role waits for a worker and would progress with one."""
        return self._queues.has_other(attempt.task.role, attempt.entry)

    def renew(self, attempt: Attempt, *, done: int | None = None, rate: float | None = None) -> None:
        """Extends the lease and reports progress, in one round trip.

        Raises:
            LeaseLost: another attempt has the task.
            JobStopped: the job was cancelled or has failed elsewhere.
        """
        answer = _renew(
            self._redis,
            attempt.caller,
            heard=keys.HEARD,
            worker=attempt.worker,
            entry=attempt.entry,
            done=done,
            rate=rate,
            gap_seconds=outage_gap(self.lease_seconds),
        )
        unless_refused(answer, attempt)

    def release(self, attempt: Attempt, reason: str, *, is_parked: bool = False) -> None:
        """Gives the task back, to be claimed at once by another worker; not counted as a failure.

        A task of a job that is being cancelled ends here instead.

        Args:
            attempt: whose turn ends.
            reason: for the event.
            is_parked: leave the task alone until it can progress.
        """
        self._give_back(attempt, reason, None, is_parked=is_parked)

    def retry(self, attempt: Attempt, error: JobError) -> None:
        """Gives the task back after an error; ``max_attempts`` of them without progress fail the job."""
        self._give_back(attempt, error.code, error.model_dump_json())

    def _give_back(self, attempt: Attempt, reason: str, error_json: str | None, is_parked: bool = False) -> None:
        answer = _give_back(
            self._redis,
            attempt.caller,
            worker=attempt.worker,
            entry=attempt.entry,
            reason=reason,
            error_json=error_json,
            max_failures=self._max_attempts,
            is_parked=is_parked,
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
            ``ok``: done. ``more``: images are still owed, since a shard was quarantined. ``last``: this is the
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
