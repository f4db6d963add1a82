"""One attempt at a task, as the work sees it: what it works on, when it must end, and how it waits and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shared.broker import Attempt, Broker, LeaseLost
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import JobRecord
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import Storage
from shared.storage.outages import will_pass
from shared.storage.scratch import Scratch
from shared.worker.heartbeat import Heartbeat
from shared.worker.stopping import StopFlag
from shared.worker.storage_hold import StorageHold

Result = TypeVar("Result")


class WorkerStopping(Exception):
    """This process was asked to end (SIGTERM, SIGINT); the task goes back to the queue."""


class TurnYielded(Exception):
    """The worker gives the task back until it can progress, because another one may need a worker more.

    The argument is the reason, for the event.
    """


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
        self._heartbeat = Heartbeat(attempt, broker.leases, stopping, show_worker)
        self.make_room: Callable[[], None] = lambda: None
        """Called while the storage is full; the work may set it to what deletes files it can do without."""
        self._scratch = Scratch()
        self.scratch: Path = self._scratch.path
        """A local folder that goes with the turn."""

    def __enter__(self) -> Turn:
        """Starts the heartbeat."""
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.stop()
        self._scratch.close()

    def check(self) -> None:
        """Raises LeaseLost, JobStopped or WorkerStopping when the work should end; costs no round trip."""
        if self._heartbeat.verdict is not None:
            raise self._heartbeat.verdict
        if self._stopping.is_set():
            raise WorkerStopping

    def progress(self, done: int) -> None:
        """Units done so far; the next heartbeat reports them with the recent rate."""
        self._heartbeat.done = done

    @property
    def has_progressed(self) -> bool:
        """Whether any unit of work was done in this turn."""
        return bool(self._heartbeat.done)

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


def _parse(record: JobRecord) -> JobSpec:
    try:
        return record.parsed_spec()
    except ValueError as error:
        message = f"the stored specification is not valid for this version of the worker: {error}"
        raise UserError("invalid_spec", message) from error
