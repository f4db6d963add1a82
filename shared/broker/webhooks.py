"""Who is still to be told that a job has ended: a job names an address, and its end makes a *delivery* due.

The script that ends a job adds its id to a sorted set, by when the delivery is due (``end_job`` in
``shared.broker.scripts``), so that no end is missed and none is told that did not happen. An API process *claims* what
is due, which moves it a lease ahead: others leave it alone meanwhile, and take it over should the process die. The
score that a claim has set is its token. Once the delivery is done with, claimed by somebody else, or withdrawn, because
the job was deleted or goes on after a retry, that score is gone and whatever the claimant says is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import Caller, job_script, script


@script("""
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', webhooks, '-inf', now, 'LIMIT', 0, most)) do
  redis.call('ZADD', webhooks, tonumber(now) + lease_seconds, id)
  claimed[#claimed + 1] = id
  claimed[#claimed + 1] = redis.call('ZSCORE', webhooks, id)
end
return claimed
""")
def _claim(*, webhooks: Key, most: int, lease_seconds: float) -> list[str]:
    """Ids of jobs, each followed by the token of its claim."""
    ...


@job_script(
    """
if redis.call('ZSCORE', webhooks, job_id) ~= claim then return end
redis.call('ZREM', webhooks, job_id)
local attempts = tonumber(get('webhook_failures') or 0) + 1
event('webhook_delivered', '', cjson.encode({receiver = receiver, status = status, attempts = attempts}))
""",
    even_when_full=True,
)
def _delivered(*, webhooks: Key, claim: str, receiver: str, status: int) -> None: ...


@job_script(
    """
if redis.call('ZSCORE', webhooks, job_id) ~= claim then return nil end
local attempts = redis.call('HINCRBY', KEYS[1], 'webhook_failures', 1)
local wait = waits_seconds[attempts]
if wait then
  redis.call('ZADD', webhooks, tonumber(now()) + wait, job_id)
  return tostring(wait)
end
redis.call('ZREM', webhooks, job_id)
event('webhook_failed', '', cjson.encode({receiver = receiver, reason = reason, attempts = attempts}))
return 'given up'
""",
    even_when_full=True,
)
def _failed(*, webhooks: Key, claim: str, receiver: str, reason: str, waits_seconds: Sequence[float]) -> str | None: ...


@job_script("""
if redis.call('ZSCORE', webhooks, job_id) == claim then
  redis.call('ZADD', webhooks, tonumber(now()) + seconds, job_id)
end
""")
def _postpone(*, webhooks: Key, claim: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Delivery:
    """A job whose end is to be told, claimed by the caller."""

    job_id: str
    claim: str
    """Token of the claim."""


class Webhooks:
    """Deliveries that are due."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def claim(self, most: int, *, lease_seconds: float) -> list[Delivery]:
        """Deliveries that are due, for longest first; nobody else gets them within the lease.

        Args:
            most: at most so many.
            lease_seconds: after which they are due again unless the caller says what came of them.
        """
        flat = _claim(self._redis, webhooks=keys.WEBHOOKS, most=most, lease_seconds=lease_seconds)
        return [Delivery(job_id, claim) for job_id, claim in zip(flat[::2], flat[1::2], strict=True)]

    def delivered(self, delivery: Delivery, *, receiver: str, status: int) -> None:
        """Notes that the address has answered, which ends the delivery.

        Args:
            delivery: claimed.
            receiver: host and port, for the event.
            status: of the answer.
        """
        _delivered(
            self._redis,
            Caller(delivery.job_id),
            webhooks=keys.WEBHOOKS,
            claim=delivery.claim,
            receiver=receiver,
            status=status,
        )

    def failed(self, delivery: Delivery, *, receiver: str, reason: str, waits_seconds: Sequence[float]) -> float | None:
        """Notes that an attempt has come to nothing.

        Args:
            delivery: claimed.
            receiver: host and port, for the event.
            reason: for the event that ends the delivery after the last attempt.
            waits_seconds: before each further attempt, from the second on. None is left: the delivery ends.

        Returns:
            Seconds until the next attempt; None when there will be none.
        """
        answer = _failed(
            self._redis,
            Caller(delivery.job_id),
            webhooks=keys.WEBHOOKS,
            claim=delivery.claim,
            receiver=receiver,
            reason=reason,
            waits_seconds=list(waits_seconds),
        )
        return None if answer in (None, "given up") else float(answer)

    def postpone(self, delivery: Delivery, seconds: float) -> None:
        """Gives a delivery back, due again after so many seconds, which counts as no attempt."""
        _postpone(self._redis, Caller(delivery.job_id), webhooks=keys.WEBHOOKS, claim=delivery.claim, seconds=seconds)

    def pending(self) -> int:
        """Deliveries that are due, now or later."""
        return int(self._redis.zcard(keys.WEBHOOKS))
