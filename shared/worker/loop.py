"""What a worker process does around its work: claim, heartbeat, errors, signals.

A worker of either role is this loop with another ``work`` function. ``work`` receives a ``Turn``, calls
``turn.check()`` often (it raises when the job was stopped, the lease lost or the process told to end) and
reports with ``turn.progress``. However ``work`` ends, the loop says so to the broker: user errors fail the
job, other errors give the task back to be tried again, signals give it back untouched.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import redis
import structlog

from shared.broker import Attempt, Broker, JobStopped, LeaseLost
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import JobError, JobRecord, Role
from shared.logs import in_this_context
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import Storage
from shared.storage.durable_files import is_full
from shared.storage.identity import StorageIdentity
from shared.storage.outages import will_pass
from shared.storage.scratch import Scratch
from shared.worker.retention import SWEEP_SECONDS, sweep
from shared.worker.storage_hold import LONGEST_PAUSE_SECONDS, StorageHold

logger = structlog.get_logger()

HEARTBEAT_SECONDS = 2.0
"""Longest pause between heartbeats, so that a cancel is heard within it however long the lease is."""

RATE_WINDOW_SECONDS = 20.0
STOP_POLL_SECONDS = 0.1

STOP_SECONDS = 9.0
"""Time to leave after SIGTERM. Whoever cannot make it (a server that hangs, a slow disk) goes as it stands: the
lease expires and a successor goes on from the last checkpoint."""

UNREACHABLE_SECONDS = 4.0
"""How much of it may be spent on a server that does not answer."""

STORAGE_POLL_SECONDS = 2.0
"""Between looks of an idle worker that does not see the storage."""

Result = TypeVar("Result")


class WorkerStopping(Exception):
    """This process was asked to end (SIGTERM, SIGINT); the task goes back to the queue."""


class TurnYielded(Exception):
    """The worker gives the task back until it can progress, because another one may need a worker more.

    The argument is the reason, for the event.
    """


class StopFlag:
    """Set by a signal handler, asked by everyone. ``threading.Event`` would not do: its lock is not reentrant,
    so a signal that arrives while the main thread is inside ``wait`` could deadlock in ``set``.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Asks to stop."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether stopping was asked for."""
        return self._is_set

    def wait(self, seconds: float) -> None:
        """Waits that long, or until stopping is asked for."""
        until = time.monotonic() + seconds
        while not self._is_set and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, STOP_POLL_SECONDS))


class Turn:
    """One attempt at a task, as the work function sees it."""

    def __init__(
        self,
        attempt: Attempt,
        broker: Broker,
        storage: Storage,
        settings: Settings,
        stopping: StopFlag,
        show_worker: Callable[[], None],
    ) -> None:
        self.attempt = attempt
        self.broker = broker
        self._hold = StorageHold(self)
        self.storage = storage.patient(self._hold)
        """Waits for a storage that is full or away, so that neither ends the work. Raises as ``check``."""
        self.settings = settings
        try:
            self.record: JobRecord = broker.jobs.get(attempt.job_id)
        except KeyError:
            raise LeaseLost(attempt) from None
        self.spec: JobSpec = _parse(self.record)
        self._stopping = stopping
        self._show_worker = show_worker
        self._verdict: Exception | None = None
        self._done: int | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._ended = threading.Event()
        self.make_room: Callable[[], None] = lambda: None
        """Called while the storage is full; the work may set it to what deletes files it can do without."""
        self._scratch = Scratch()
        self.scratch: Path = self._scratch.path
        """A local folder that goes with the turn."""
        self._thread = threading.Thread(target=in_this_context(self._beat), name="heartbeat", daemon=True)

    def __enter__(self) -> Turn:
        """Starts the heartbeat."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._scratch.close()

    def check(self) -> None:
        """Raises LeaseLost, JobStopped or WorkerStopping when the work should end; costs no round trip."""
        if self._verdict is not None:
            raise self._verdict
        if self._stopping.is_set():
            raise WorkerStopping

    def progress(self, done: int) -> None:
        """Units done so far; the next heartbeat reports them with the recent rate."""
        self._done = done

    def pause(self, seconds: float) -> None:
        """Waits, but not past the end of the turn. Raises as ``check``."""
        self._stopping.wait(seconds)
        self.check()

    def report(self, event: EventType | None = None, data: Mapping[str, Any] | None = None, **more: Any) -> None:
        """``Reports.report`` for this attempt."""
        self.broker.reports.report(self.attempt, event, data, **more)

    def persist(self, write: Callable[[], Result]) -> Result:
        """Calls ``write`` until the storage is there and has room for it, and tells the job what holds it up.

        For what is written or read beside ``storage``, such as files in ``scratch``. Waiting costs no attempt:
        nothing that was made is lost, and a cancel ends it. Raises as ``check``.
        """
        failures = 0
        while True:
            try:
                result = write()
            except OSError as error:
                if not will_pass(error):
                    raise
                failures += 1
                self._hold.failed(error, failures)
            else:
                if failures:
                    self._hold.is_over()
                return result

    def show_hold(self, error: OSError) -> None:
        """Makes what room there is to be made, and tells the job once that the work waits for the storage."""
        self._hold.tell(error)

    def _beat(self) -> None:
        interval = min(self.broker.leases.lease_seconds / 4, HEARTBEAT_SECONDS)
        while not self._ended.wait(interval):
            done = self._done
            try:
                self.broker.leases.renew(self.attempt, done=done, rate=self._rate(done))
                self._show_worker()
            except (LeaseLost, JobStopped) as verdict:
                self._verdict = verdict
                return
            except redis.RedisError as error:
                # The task may still be ours when the server is back; if it is not, the next renewal says so.
                logger.warning("heartbeat_failed", error=str(error))

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


def _parse(record: JobRecord) -> JobSpec:
    try:
        return record.parsed_spec()
    except ValueError as error:
        message = f"the stored specification is not valid for this version of the worker: {error}"
        raise UserError("invalid_spec", message) from error


class Worker:
    """The claim loop of one process.

    Args:
        role: which queue it serves.
        work: does one task; returning means that it has finished the task with the broker.
        describe: fields for ``GET /workers`` (device, memory).
    """

    def __init__(
        self,
        role: Role,
        work: Callable[[Turn], None],
        *,
        broker: Broker,
        storage: Storage,
        settings: Settings,
        describe: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.role = role
        self.name = f"{role}-{socket.gethostname()}-{os.getpid()}"
        self._work = work
        self._broker = broker
        self._storage = storage
        self._identity = StorageIdentity(storage, broker.storage_record)
        self._settings = settings
        self._describe = describe
        self._stopping = StopFlag()
        self._misses_storage = False
        self._next_sweep = time.monotonic()

    def run(self) -> None:
        """Works until a signal arrives."""
        signal.signal(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's `&` has it ignored, and so it stays
            signal.signal(signal.SIGINT, self._stop)
        structlog.contextvars.bind_contextvars(worker=self.name, role=str(self.role))
        logger.info("worker_started")
        while not self._stopping.is_set():
            with suppress(redis.RedisError):
                self._register("")
            if not self._has_storage():
                self._stopping.wait(STORAGE_POLL_SECONDS)
                continue
            try:
                attempt = self._broker.leases.claim(self.role, self.name)
            except redis.RedisError as error:
                logger.warning("claim_failed", error=str(error))
                self._stopping.wait(1.0)
                continue
            if attempt is not None:
                self._take(attempt)
            elif time.monotonic() >= self._next_sweep:
                self._sweep()
        with suppress(redis.RedisError):
            self._broker.workers.forget(self.name)
        # The interpreter takes the handler away while it shuts down, and then the signal would kill.
        signal.setitimer(signal.ITIMER_REAL, 0)
        logger.info("worker_stopped")
        structlog.contextvars.unbind_contextvars("worker", "role")

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._broker.hurry(UNREACHABLE_SECONDS)
            # A timer thread would need locks that the interrupted code may hold.
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
            signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)

    def _has_storage(self) -> bool:
        """Whether this worker sees the storage of the deployment. If not, it leaves the tasks to those that do."""
        try:
            self._identity.establish(in_empty_root=False)
        except redis.RedisError:
            return True  # claiming meets the same, and says so
        except OSError as error:
            if not self._misses_storage:
                logger.warning("storage_unavailable", error=str(error))
            self._misses_storage = True
            return False
        if self._misses_storage:
            logger.info("storage_is_back")
        self._misses_storage = False
        return True

    def _sweep(self) -> None:
        self._next_sweep = time.monotonic() + SWEEP_SECONDS
        try:
            if self._broker.retention.may_sweep(SWEEP_SECONDS):
                sweep(self._broker, self._storage)
        except Exception as error:  # the next one tries again; a worker does not end for want of tidiness
            logger.warning("sweep_failed", error=f"{type(error).__name__}: {error}")

    def _register(self, job_id: str) -> None:
        fields = {"role": str(self.role), "pid": os.getpid(), "job": job_id, "at": time.time(), **self._describe()}
        self._broker.workers.register(self.name, fields, ttl_seconds=60)

    def _take(self, attempt: Attempt) -> None:
        with structlog.contextvars.bound_contextvars(
            job=attempt.job_id, partition=attempt.task.partition, attempt=attempt.number
        ):
            logger.info("attempt_started")
            try:
                self._settle(attempt)
            except LeaseLost:
                logger.warning("lease_lost")
            except redis.RedisError as error:
                # The lease expires by itself and the task is taken up again.
                logger.error("server_unreachable", error=str(error))

    def _settle(self, attempt: Attempt) -> None:
        """Does the work and tells the broker how it ended. Raises LeaseLost when that no longer counts."""
        leases = self._broker.leases
        try:
            show = partial(self._register, attempt.job_id)
            with suppress(redis.RedisError):
                show()
            with Turn(attempt, self._broker, self._storage, self._settings, self._stopping, show) as turn:
                self._work(turn)
            logger.info("attempt_finished")
        except (LeaseLost, redis.RedisError):
            raise
        except JobStopped:
            logger.info("job_stopped")
            leases.release(attempt, "job stopped")
        except WorkerStopping:
            logger.info("worker_stopping")
            leases.release(attempt, "worker stopping")
        except TurnYielded as reason:
            logger.info("turn_yielded", reason=str(reason))
            leases.release(attempt, str(reason), is_parked=True)
        except UserError as error:
            logger.warning("job_failed", code=error.code, error=error.message)
            leases.fail(attempt, error)
        except Exception as error:
            if will_pass(error):
                # Nobody's fault, so it costs no attempt; where the work itself can wait, it does.
                code = "storage_full" if is_full(error) else "storage_unavailable"
                logger.warning(code, error=str(error))
                leases.release(attempt, f"{code.replace('_', ' ')}: {error}")
                self._stopping.wait(LONGEST_PAUSE_SECONDS / 2)
                return
            logger.exception("attempt_failed")
            described = f"{type(error).__name__}: {error}"[:2000]
            leases.retry(attempt, JobError(code="internal_error", message=described, stage=attempt.task.role))
            self._stopping.wait(min(2.0**attempt.number / 4, 10.0))
