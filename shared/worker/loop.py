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
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import FrameType

import redis
import structlog

from shared.broker import Attempt, Broker, JobStopped, LeaseLost
from shared.errors import UserError
from shared.jobs import JobError, Role
from shared.networks.devices import is_out_of_memory
from shared.settings import Settings
from shared.storage import Storage
from shared.storage.durable_files import is_full
from shared.storage.identity import StorageIdentity
from shared.storage.outages import will_pass
from shared.worker.memory import out_of_memory
from shared.worker.retention import SWEEP_SECONDS, sweep
from shared.worker.stopping import StopFlag
from shared.worker.storage_hold import LONGEST_PAUSE_SECONDS
from shared.worker.turn import Turn, TurnYielded, WorkerStopping

logger = structlog.get_logger()

STOP_SECONDS = 9.0
"""Time to leave after SIGTERM. Whoever cannot make it (a server that hangs, a slow disk) goes as it stands: the
lease expires and a successor goes on from the last checkpoint."""

UNREACHABLE_SECONDS = 4.0
"""How much of it may be spent on a server that does not answer."""

STORAGE_POLL_SECONDS = 2.0
"""Between looks of an idle worker that does not see the storage."""


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
        describe: Callable[[], Mapping[str, str | int | float]] = dict,
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
            self._show("")
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

    def _show(self, job_id: str) -> None:
        """Tells what this worker does. It works all the same when it cannot."""
        try:
            self._register(job_id)
        except redis.RedisError:
            pass  # claiming meets the same, and says so
        except Exception as error:  # whatever a driver raises
            logger.warning("worker_not_described", error=f"{type(error).__name__}: {error}")

    def _register(self, job_id: str) -> None:
        fields: dict[str, str | int | float] = {"role": str(self.role), "pid": os.getpid(), "job": job_id}
        fields["at"] = time.time()
        try:
            fields |= self._describe()
        finally:
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

    def _do(self, turn: Turn) -> None:
        """The work. Out of memory before anything was done is the job's doing: the next attempt would end there too."""
        try:
            self._work(turn)
        except Exception as error:
            if is_out_of_memory(error) and not turn.has_progressed:
                raise out_of_memory(turn.attempt.task.role, turn.spec, error) from error
            raise

    def _settle(self, attempt: Attempt) -> None:
        """Does the work and tells the broker how it ended. Raises LeaseLost when that no longer counts."""
        leases = self._broker.leases
        try:
            self._show(attempt.job_id)
            describe = partial(self._register, attempt.job_id)
            with Turn(attempt, self._broker, self._storage, self._settings, self._stopping, describe) as turn:
                self._do(turn)
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
