"""Tells the address that a job names that the job has ended: signed, and until it answers.

One task of each API process claims what is due (``shared.broker.webhooks``) and posts it, several at a time. Headers
and signature are those of Standard Webhooks (https://www.standardwebhooks.com), so any of its libraries verifies them.
A delivery may arrive more than once, always under the same ``webhook-id``: a process may die between the
answer and noting it.

The address is a user's, and is posted to from inside the operator's network. So it goes only to hosts that the operator
lists, which is checked again here; redirects are not followed, no body is read, and nothing of an answer but its status
reaches anybody. Of an address only its host is told or logged: the rest may be a secret.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, Literal

import anyio
import httpx
import redis
import structlog
from anyio.to_thread import run_sync
from pydantic import BaseModel, JsonValue

from shared.broker import Broker, Delivery
from shared.jobs import JobError, JobRecord, State
from shared.settings import Settings, webhook_key
from shared.specs.webhooks import is_allowed, receiver_of
from shared.tasks.quality import Verdict

logger = structlog.get_logger()

POLL_SECONDS: Final = 0.5
TIMEOUT_SECONDS: Final = 10.0
"""From the first look at the host's name to the head of the answer."""

LEASE_SECONDS: Final = 60.0
"""After which another process takes over. Well above what a delivery takes, an outage of Redis included."""

WAITS_SECONDS: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0)
"""Before the second attempt and each after it: eight in all, over nearly four hours."""

MOST_AT_ONCE: Final = 64
MOST_AT_ONCE_TO_ONE: Final = 8
"""A receiver that does not answer keeps no more requests waiting, and so never all of them."""

BUSY_SECONDS: Final = 1.0
"""A delivery to a receiver that has as many is looked at again after so long."""

GONE: Final = 410
"""The receiver wants nothing more, says Standard Webhooks."""


class EndedJob(BaseModel):
    """What a receiver learns of the job; ``GET /jobs/{id}`` knows more. Times are Unix seconds."""

    id: str
    name: str
    metadata: dict[str, str]
    state: State
    created_at: float
    finished_at: float
    verdict: Verdict | None
    result: dict[str, JsonValue] | None
    error: JobError | None


class Webhook(BaseModel):
    """The body of a delivery."""

    type: Literal["job.succeeded", "job.failed", "job.cancelled"]
    timestamp: datetime
    """When the job ended."""
    data: EndedJob

    @classmethod
    def of(cls, job: JobRecord) -> Webhook:
        """Of a job that has ended; the same at every attempt."""
        assert job.state.is_final
        assert job.finished_at is not None
        data = EndedJob(
            id=job.id,
            name=job.name,
            metadata=job.metadata,
            state=job.state,
            created_at=job.created_at,
            finished_at=job.finished_at,
            verdict=job.quality.verdict if job.quality else None,
            result=job.result,
            error=job.error,
        )
        return cls.model_validate(
            {"type": f"job.{job.state}", "timestamp": datetime.fromtimestamp(job.finished_at, UTC), "data": data}
        )


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: what the scheme calls ``v1``, HMAC-SHA256 in base64."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


class WebhookSender:
    """Sends what is due for as long as ``run`` runs.

    Args:
        broker: has the deliveries.
        allowed_hosts: to which something may be sent.
        key: signs.
    """

    def __init__(self, broker: Broker, allowed_hosts: tuple[str, ...], key: bytes) -> None:
        self._broker = broker
        self._allowed_hosts = allowed_hosts
        self._key = key
        self._held: set[Delivery] = set()
        self._open_requests: Counter[str] = Counter()

    async def run(self) -> None:
        """Claims and sends until it is cancelled. Outages of Redis are waited for."""
        # Of the environment SSL_CERT_FILE counts, and neither proxies nor what .netrc has for a host.
        client = httpx.AsyncClient(
            verify=httpx.create_ssl_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=TIMEOUT_SECONDS,
            headers={"User-Agent": f"fast-dfkd/{version('fast-dfkd')}", "Content-Type": "application/json"},
            # Bodies are not read, so no connection can be used again.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        try:
            async with client, anyio.create_task_group() as tasks:
                while True:
                    for delivery in await self._claim():
                        self._held.add(delivery)
                        tasks.start_soon(self._deliver, client, delivery)
                    await anyio.sleep(POLL_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(self._give_back)

    async def _claim(self) -> list[Delivery]:
        free = MOST_AT_ONCE - len(self._held)
        if not free:
            return []
        try:
            return await run_sync(lambda: self._broker.webhooks.claim(free, lease_seconds=LEASE_SECONDS))
        except redis.RedisError as error:
            logger.debug("webhooks_not_claimed", error=str(error))  # requests tell of the outage
            return []

    def _give_back(self) -> None:
        """Whatever is not done with when the process ends is due at once, for whoever is there next."""
        with suppress(redis.RedisError):  # then their leases run out
            for delivery in self._held:
                self._broker.webhooks.postpone(delivery, 0.0)

    async def _deliver(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        try:
            await self._attempt(client, delivery)
        except redis.RedisError as error:
            logger.warning("webhook_outcome_not_noted", job=delivery.job_id, error=str(error))
        except Exception:  # of one job, and the others go on
            logger.exception("webhook_not_attempted", job=delivery.job_id)
            with suppress(redis.RedisError):
                await run_sync(self._failed, delivery, "", "a fault of the service; its log has the details")
        self._held.discard(delivery)

    async def _attempt(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        try:
            job = await run_sync(self._broker.jobs.get, delivery.job_id)
        except KeyError:
            return  # deleted this very moment, and the delivery with it
        if not job.state.is_final:
            return  # retried this very moment: its next end will be told
        url = str(job.spec["webhook"])
        receiver = receiver_of(url)
        if self._open_requests[receiver] >= MOST_AT_ONCE_TO_ONE:
            await run_sync(self._broker.webhooks.postpone, delivery, BUSY_SECONDS)
            return
        self._open_requests[receiver] += 1
        try:
            answer = await self._post(client, url, job)
        finally:
            self._open_requests[receiver] -= 1
        if isinstance(answer, int) and 200 <= answer < 300:
            status = answer
            await run_sync(lambda: self._broker.webhooks.delivered(delivery, receiver=receiver, status=status))
            logger.info("webhook_delivered", job=job.id, receiver=receiver, status=status)
        else:
            await run_sync(self._failed, delivery, receiver, _reason(answer), answer == GONE)

    async def _post(self, client: httpx.AsyncClient, url: str, job: JobRecord) -> int | str:
        """The status of the answer, or why there is none."""
        target = httpx.URL(url)
        # By what httpx reads out of the address, which decides where it goes.
        if not is_allowed(f"{target.scheme}://{target.netloc.decode()}", self._allowed_hosts):
            return "the host is no longer allowed (DFKD_WEBHOOK_HOSTS)"
        body = Webhook.of(job).model_dump_json().encode()
        message_id, timestamp = f"{job.id}-{job.retries}", int(time.time())
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, message_id, timestamp, body),
        }
        try:
            with anyio.fail_after(TIMEOUT_SECONDS):
                async with client.stream("POST", target, content=body, headers=headers) as answer:
                    return answer.status_code
        except (TimeoutError, httpx.TimeoutException):
            return f"no answer within {TIMEOUT_SECONDS:g} s"
        except httpx.ConnectError as error:
            return f"no connection: {error}"
        except httpx.HTTPError as error:
            return f"no answer in HTTP ({type(error).__name__})"  # its text may repeat what was answered instead

    def _failed(self, delivery: Delivery, receiver: str, reason: str, is_last: bool = False) -> None:
        waits = () if is_last else WAITS_SECONDS
        wait = self._broker.webhooks.failed(delivery, receiver=receiver, reason=reason, waits_seconds=waits)
        logger.warning(
            "webhook_not_delivered", job=delivery.job_id, receiver=receiver, reason=reason, again_in_seconds=wait
        )


def _reason(answer: int | str) -> str:
    if isinstance(answer, str):
        return answer
    hint = "; redirects are not followed" if 300 <= answer < 400 else ""
    return f"it answered {answer}{hint}"


@asynccontextmanager
async def sending_webhooks(broker: Broker, settings: Settings) -> AsyncIterator[None]:
    """Sends webhooks while the block runs, where the deployment has any.

    Raises:
        ValueError: there are hosts and no secret.
    """
    key = webhook_key(settings)
    if key is None:
        yield
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(WebhookSender(broker, settings.webhook_hosts, key).run)
        yield
        tasks.cancel_scope.cancel()
