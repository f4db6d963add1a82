"""The sign of life of an attempt, from a thread of its own that outlives whatever goes wrong.

Renewing the lease is one thing and telling what the worker does is another: the second may fail in as many ways as
there are drivers, and never keeps the first from being done. When the process is told to end and the work does not
react, this thread gives the task back in its place.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import redis
import structlog

from shared.broker import Attempt, JobStopped, LeaseLost
from shared.broker.leases import Leases
from shared.logs import in_this_context
from shared.worker.stopping import StopFlag

logger = structlog.get_logger()

HEARTBEAT_SECONDS = 2.0
"""Longest pause between heartbeats, so that a cancel is heard within it however long the lease is."""

STOPPING_SECONDS = 0.5
"""Longest pause once the process is to end."""

REACTION_SECONDS = 6.0
"""How long the work may go on after the process was told to end, in a phase that cannot be interrupted."""

RATE_WINDOW_SECONDS = 20.0


class Heartbeat:
    """Renews one attempt's lease until ``stop``.

    Args:
        attempt: whose lease.
        leases: of the broker.
        stopping: whether the process is to end.
        describe: tells what the worker does; whatever it raises is logged and otherwise ignored.
    """

    def __init__(self, attempt: Attempt, leases: Leases, stopping: StopFlag, describe: Callable[[], None]) -> None:
        self._attempt = attempt
        self._leases = leases
        self._stopping = stopping
        self._describe = describe
        self.verdict: Exception | None = None
        """Why the work must end, once it must: LeaseLost or JobStopped."""
        self.done: int | None = None
        """Units done so far."""
        self._marks: deque[tuple[float, int]] = deque()
        self._complaints: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=in_this_context(self._run), name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, and waits for it."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        longest = min(self._leases.lease_seconds / 4, HEARTBEAT_SECONDS)
        while not self._ended.wait(min(longest, STOPPING_SECONDS) if self._stopping.is_set() else longest):
            try:
                if self._stopping.seconds() > REACTION_SECONDS:
                    self._give_back()
                    return
                self._leases.renew(self._attempt, done=self.done, rate=self._rate(self.done))
            except (LeaseLost, JobStopped) as verdict:
                self.verdict = verdict
                return
            except redis.RedisError as error:
                # The task may still be ours when the server is back; if it is not, the next renewal says so.
                logger.warning("heartbeat_failed", error=str(error))
            except Exception:
                logger.exception("heartbeat_failed")
            try:
                self._describe()
            except Exception as error:
                self._complain(error)

    def _give_back(self) -> None:
        """The work goes on until the process ends, and nothing of it counts."""
        logger.warning("worker_stopping", reason="the work did not react")
        self.verdict = LeaseLost(self._attempt)
        self._leases.release(self._attempt, "worker stopping")

    def _complain(self, error: Exception) -> None:
        """Logs each kind of failure once."""
        kind = type(error).__name__
        if kind not in self._complaints:
            self._complaints.add(kind)
            logger.warning("worker_not_described", error=f"{kind}: {error}")

    def _rate(self, done: int | None) -> float | None:
        """Units per second over the last window; None until something was done."""
        if done is None:
            return None
        moment = time.monotonic()
        self._marks.append((moment, done))
        while moment - self._marks[0][0] > RATE_WINDOW_SECONDS:
            self._marks.popleft()
        started, first = self._marks[0]
        return (done - first) / (moment - started) if moment > started else None
