"""An attempt: one worker's turn at a task, and what the broker answers to one that must not go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.broker.scripts import Caller
from shared.jobs import Task


class LeaseLost(Exception):
    """Another attempt has taken the task over; nothing this worker does counts any more."""


class JobStopped(Exception):
    """The job was cancelled, or failed elsewhere; the worker should stop and say so."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One worker's turn at a task. ``number`` counts from 1 over the life of the task."""

    job_id: str
    task: Task
    number: int
    token: str
    entry: str
    worker: str

    @property
    def caller(self) -> Caller:
        """As scripts know it: the token is what fences its writes."""
        return Caller(self.job_id, self.task, self.token)


def unless_refused(answer: Any, attempt: Attempt) -> Any:
    """A script's answer, if it did what it was asked to.

    Raises:
        LeaseLost, JobStopped: it refused, and why.
    """
    if answer == "lost":
        raise LeaseLost(attempt)
    if answer == "stop":
        raise JobStopped(attempt)
    return answer
