"""Whether jobs can be taken: asked by anybody, without a key and as often as they like, so answered from memory.

The answer is made at most once in ``KEPT_SECONDS``, however many ask at a time, and says no more than which part does
not work and what kind of error that was: messages hold addresses. What it is in full stands in the log, once for each
change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import anyio
import redis
import structlog
from anyio.to_thread import run_sync

from shared.broker import Broker
from shared.storage import Storage
from shared.storage.identity import StorageIdentity

logger = structlog.get_logger()

KEPT_SECONDS: Final = 1.0
READY_WITHIN_SECONDS: Final = 1.5
"""Below the two seconds that orchestrators commonly wait for a probe."""


class Complaint(NamedTuple):
    """What does not work.

    Attributes:
        kind: a word or sentence for everybody.
        message: for the operator.
    """

    kind: str
    message: str


class Readiness:
    """Asks Redis and the storage whether they can be written to, which is what a job needs.

    Args:
        broker, storage, identity: of the deployment.
    """

    def __init__(self, broker: Broker, storage: Storage, identity: StorageIdentity) -> None:
        self._broker = broker
        self._storage = storage
        self._identity = identity
        self._asked_at = float("-inf")
        self._complaints: dict[str, Complaint] = {}
        self._lock: anyio.Lock | None = None

    async def complaints(self) -> Mapping[str, Complaint]:
        """What does not work, by its code: ``redis_unavailable``, ``storage_unavailable``. Empty when ready."""
        if self._lock is None:  # which belongs to the event loop that runs now
            self._lock = anyio.Lock()
        async with self._lock:
            if time.monotonic() - self._asked_at > KEPT_SECONDS:
                found = await self._ask()
                if found != self._complaints:
                    for code, complaint in found.items():
                        logger.warning("not_ready", code=code, error=complaint.message)
                self._complaints, self._asked_at = found, time.monotonic()
        return self._complaints

    async def _ask(self) -> dict[str, Complaint]:
        found: dict[str, Complaint] = {}

        async def run(code: str, probe: Callable[[], object]) -> None:
            try:
                with anyio.fail_after(READY_WITHIN_SECONDS):
                    await run_sync(probe, abandon_on_cancel=True)
            except TimeoutError:
                found[code] = Complaint(f"no answer within {READY_WITHIN_SECONDS:g} s", "timeout")
            except Exception as error:  # whatever the reason is, it is the answer
                found[code] = Complaint(type(error).__name__, str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "redis_unavailable", self._broker.jobs.check_writable)
            tasks.start_soon(run, "storage_unavailable", self._check_storage)
        return dict(sorted(found.items()))

    def _check_storage(self) -> None:
        """Raises what real work would meet, on this storage and no other."""
        with suppress(redis.RedisError):  # said by the other probe
            self._identity.compare(adopts=True)
        self._storage.check_writable()
