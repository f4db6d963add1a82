"""How far synthesis may be ahead of the distiller, and what it does then: wait, or let another task have its place.

The backlog is counted against what the distiller has consumed. In lockstep it is one shard: the student must have been
trained on each before the next is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.broker import Backlog
from shared.events import EventType
from shared.specs import JobSpec
from shared.worker.loop import Turn, TurnYielded

BACKLOG_POLL_SECONDS = 0.1

YIELD_SECONDS = 30.0
"""How long synthesis waits for a job's first distiller before another task, though newer, gets the worker."""


class Backpressure:
    """Holds an attempt back while enough shards wait for the distiller.

    Args:
        turn: the attempt.
        announce_sealed: announces the shards that are written by now; with True it waits for all that are pending.
    """

    def __init__(self, turn: Turn, announce_sealed: Callable[[bool], None]) -> None:
        spec = turn.spec
        self._turn = turn
        self._announce_sealed = announce_sealed
        self._is_lockstep = is_lockstep(spec)
        assert spec.synthesis is not None
        self._max_backlog = 1 if self._is_lockstep else spec.synthesis.max_backlog

    def wait(self, pending: Callable[[], int]) -> None:
        """Returns once the next shard may be made.

        Args:
            pending: how many shards are made and not announced.

        Raises:
            TurnYielded: no distiller works on the job, and another task waits for a worker.
            LeaseLost, JobStopped, WorkerStopping: as ``Turn.check``.
        """
        if self._is_lockstep:
            self._announce_sealed(True)
        waited = False
        patience = YieldRule(self._turn)
        while True:
            self._turn.check()
            self._announce_sealed(False)
            backlog = self._turn.broker.shards.backlog(self._turn.attempt.job_id)
            ahead = backlog.shards + pending()
            if ahead < self._max_backlog:
                break
            if patience.is_over(backlog):
                self._announce_sealed(True)
                raise TurnYielded("no distiller for this job, and another task waits", is_older=patience.is_older)
            if not waited and not self._is_lockstep:
                waited = True
                self._turn.report(EventType.SYNTHESIS_PAUSED, {"backlog": ahead})
            self._turn.pause(BACKLOG_POLL_SECONDS)
        if waited:
            self._turn.report(EventType.SYNTHESIS_RESUMED, {"backlog": ahead})


def is_lockstep(spec: JobSpec) -> bool:
    """Whether synthesis and distillation of a job take turns."""
    return spec.distillation is not None and spec.distillation.pacing == "lockstep"


class YieldRule:
    """When a worker that waits for a distiller lets another task have its place.

    All distillers may be waiting for shards of other jobs, and this worker may be the only one that can make
    them: because a worker of an older job vanished (then it yields at once), or because a shard of a job whose
    synthesis had ended was damaged and is to be made again (then that task is new in the queue).
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._heartbeat: str | None = None
        self._heard_at = self._started_at = time.monotonic()
        self._next_look = 0.0
        self.is_older = False
        """Whether the task that is let pass is older than this one."""

    def is_over(self, backlog: Backlog) -> bool:
        """Whether to yield now. Asks the server once a second."""
        moment = time.monotonic()
        leases = self._turn.broker.leases
        if backlog.distiller_heartbeat != self._heartbeat:
            self._heartbeat, self._heard_at = backlog.distiller_heartbeat, moment
        # A distiller that fell silent is none, though its task is still said to run until another takes it.
        if backlog.has_distiller and moment - self._heard_at < 2 * leases.lease_seconds:
            self._started_at = moment
            return False
        if moment < self._next_look:
            return False
        self._next_look = moment + 1.0
        self.is_older = leases.has_waiting(self._turn.attempt, only_older=True)
        is_late = moment - self._started_at > YIELD_SECONDS
        return self.is_older or (is_late and leases.has_waiting(self._turn.attempt, only_older=False))
