"""How far synthesis may be ahead of the distiller, and what it does then: wait, or let another task have its place.

The backlog is counted against what the distiller has consumed, or the program that trains in its place. In lockstep it
is one shard: the student must have been trained on each before the next is made.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.events import EventType
from shared.specs import JobSpec
from shared.worker.turn import Turn, TurnYielded
from shared.worker.yielding import YieldRule

BACKLOG_POLL_SECONDS = 0.1

YIELD_SECONDS = 5.0
"""How long synthesis waits for a job's distiller before another task gets the worker: idle ones come within less.
For a program of which nobody knows whether it lives it waits no longer."""


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
            TurnYielded: no distiller of ours works on the job, and another task waits for a worker.
            LeaseLost, JobStopped, WorkerStopping: as ``Turn.check``.
        """
        if self._is_lockstep:
            self._announce_sealed(True)
        waited = False
        patience = YieldRule(self._turn, YIELD_SECONDS)
        while True:
            self._turn.check()
            self._announce_sealed(False)
            backlog = self._turn.broker.shards.backlog(self._turn.attempt.job_id)
            ahead = backlog.shards + pending()
            if ahead < self._max_backlog:
                break
            if backlog.has_distiller:
                patience.goes_on()
            elif patience.is_over():
                self._announce_sealed(True)
                awaited = (
                    "the program that trains is behind" if self._turn.spec.external else "no distiller for this job"
                )
                raise TurnYielded(f"{awaited}, and another task waits")
            if not waited and not self._is_lockstep:
                waited = True
                self._turn.report(EventType.SYNTHESIS_PAUSED, {"backlog": ahead})
            self._turn.pause(BACKLOG_POLL_SECONDS)
        if waited:
            self._turn.report(EventType.SYNTHESIS_RESUMED, {"backlog": ahead})


def is_lockstep(spec: JobSpec) -> bool:
    """Whether synthesis and distillation of a job take turns."""
    return spec.distillation is not None and spec.distillation.pacing == "lockstep"
