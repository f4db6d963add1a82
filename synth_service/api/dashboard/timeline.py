"""The timeline of a job: who worked on which task and when, drawn from the job's events.

Every task is a lane: one for each partition of the synthesis, one for the distillation. An attempt is a span from
``attempt_started`` to whatever ended it; in between lie the pauses, and the time without an attempt is a gap that
is shown as waiting. Places are percentages of the drawing's width, so that it fits any screen without scaling its
text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shared.events import EventType
from shared.jobs import Event, JobRecord, Role, Stage, Task

SpanKind = Literal["attempt", "paused", "waiting"]
MOST_LANES = 16
"""Partitions that are drawn; the others are told in a sentence."""

NARROWEST_PERCENT = 0.4
"""Pauses closer together than this are drawn as one: nobody could tell them apart."""

TICKS = 5
NICE_SECONDS = (
    *(1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 3, 6, 12)),
    *(86_400 * days for days in (1, 2, 5, 10, 20, 50, 100)),
)

ENDINGS: dict[str, str] = {
    EventType.ATTEMPT_LOST: "lost: the worker fell silent",
    EventType.ATTEMPT_FAILED: "failed",
    EventType.ATTEMPT_RELEASED: "released",
    EventType.TASK_SUCCEEDED: "succeeded",
}
JOB_EVENTS = frozenset({EventType.JOB_FAILED, EventType.JOB_CANCELLED, EventType.JOB_RETRIED})
"""Of the whole job, and yet they begin and end what lies on the lanes."""


@dataclass(frozen=True)
class Span:
    """A stretch of time on a lane."""

    kind: SpanKind
    start: float
    end: float
    title: str
    ending: str = ""
    """How an attempt ended, in words; empty while it goes on."""
    outcome: str = ""
    """``succeeded``, ``failed``, ``lost``, ``released``, ``cancelled``; empty while it goes on."""
    worker: str = ""
    attempt: int = 0
    count: int = 1
    """Pauses that are drawn as this one."""
    paused_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start

    @property
    def detail(self) -> str:
        """Who worked and how it ended, in words."""
        return ", ".join(each for each in (self.worker and f"on {self.worker}", self.ending) if each)


@dataclass
class Lane:
    """One task."""

    task: Task
    title: str
    spans: list[Span] = field(default_factory=list)

    @property
    def attempts(self) -> list[Span]:
        """The spans that are attempts, in order."""
        return [span for span in self.spans if span.kind == "attempt"]

    def paused_within(self, attempt: Span) -> float:
        """Seconds that an attempt spent waiting for whoever trains."""
        return sum(
            span.paused_seconds
            for span in self.spans
            if span.kind == "paused" and attempt.start <= span.start and span.end <= attempt.end
        )


@dataclass(frozen=True)
class Tick:
    """A mark on the axis, in seconds since the job was created."""

    seconds: int
    place: float


@dataclass(frozen=True)
class Timeline:
    """All lanes over one axis. Times are Unix seconds."""

    start: float
    end: float
    lanes: list[Lane]
    lanes_left_out: int = 0

    def place(self, at: float) -> float:
        """Where a moment lies, in percent of the width."""
        share = (at - self.start) / max(self.end - self.start, 1e-9)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def width(self, span: Span) -> float:
        """Width of a span in percent, enough to be seen."""
        return max(round(self.place(span.end) - self.place(span.start), 3), 0.25)

    @property
    def ticks(self) -> list[Tick]:
        """A handful of round times."""
        seconds = max(self.end - self.start, 1e-9)
        step = next((each for each in NICE_SECONDS if seconds / each <= TICKS), NICE_SECONDS[-1])
        return [Tick(at, self.place(self.start + at)) for at in range(0, int(seconds) + 1, step)]


def build_timeline(job: JobRecord, events: Iterable[Event], now: float) -> Timeline:
    """The timeline of a job until now, or until it ended.

    Args:
        job: with its stages.
        events: of the job, oldest first; frequent ones may be left out, the oldest may be gone.
        now: Unix time.
    """
    stages = _stages(job)
    drawn = stages[:MOST_LANES] + [each for each in stages[MOST_LANES:] if each[0].role is not Role.SYNTHESIS]
    of_task: dict[str, list[Event]] = {str(task): [] for task, _ in drawn}
    for event in events:
        if event.task in of_task:
            of_task[event.task].append(event)
        elif event.type in JOB_EVENTS:
            for each in of_task.values():
                each.append(event)
    end = max(job.finished_at or now, job.created_at + 1.0)
    timeline = Timeline(job.created_at, end, [], lanes_left_out=len(stages) - len(drawn))
    for task, stage in drawn:
        spans = _LaneBuilder(job, task, stage, end).build(of_task[str(task)])
        timeline.lanes.append(Lane(task, _title(task, len(stages)), _merge_pauses(spans, timeline)))
    return timeline


def _stages(job: JobRecord) -> list[tuple[Task, Stage]]:
    synthesis, distillation = job.stages.synthesis, job.stages.distillation
    partitions = synthesis.partitions if synthesis else []
    found: list[tuple[Task, Stage]] = [(Task(Role.SYNTHESIS, number), stage) for number, stage in enumerate(partitions)]
    return [*found, (Task(Role.DISTILLATION), distillation)] if distillation else found


def _title(task: Task, tasks: int) -> str:
    if task.role is Role.SYNTHESIS and tasks > 2:
        return f"Synthesis {task.partition}"
    return task.role.capitalize()


class _LaneBuilder:
    """Turns the events of one task into spans."""

    def __init__(self, job: JobRecord, task: Task, stage: Stage, end: float) -> None:
        self._task = task
        self._stage = stage
        self._end = end
        self._awaited = "your program" if job.spec.get("external") else "the distiller"
        self._spans: list[Span] = []
        self._pauses: list[Span] = []
        self._started: Event | None = None
        self._paused: Event | None = None
        self._free_since: float | None = job.created_at
        """Since when the task waits for a worker; None while it does not."""
        self._is_done = False

    def build(self, events: Sequence[Event]) -> list[Span]:
        self._recover_forgotten([event for event in events if event.task])
        for event in events:
            self._take(event)
        self._finish()
        return sorted([*self._spans, *self._pauses], key=lambda span: (span.start, span.kind != "attempt"))

    def _take(self, event: Event) -> None:
        if event.type == EventType.ATTEMPT_STARTED:
            if self._started is not None:
                self._close(event.at, "replaced by the next attempt", "lost")
            self._wait_until(event.at)
            self._started = event
        elif event.type in ENDINGS:
            if self._started is not None:
                self._close(event.at, _ending(event), event.type.partition("_")[2])
            self._is_done = event.type == EventType.TASK_SUCCEEDED
            self._free_since = None if self._is_done else event.at
        elif event.type == EventType.SYNTHESIS_PAUSED:
            self._paused = event
        elif event.type == EventType.SYNTHESIS_RESUMED:
            self._resume(event.at)
        elif event.type == EventType.SHARD_DAMAGED and self._is_done:
            self._is_done, self._free_since = False, event.at
        elif event.type == EventType.JOB_RETRIED:
            self._free_since = None if self._is_done else event.at
        elif event.type in JOB_EVENTS:
            self._end_with_job(event)

    def _end_with_job(self, event: Event) -> None:
        """A task whose job ends has no event of its own."""
        if self._started is not None:
            if event.type == EventType.JOB_FAILED and event.data.get("stage") == self._task.role:
                self._close(event.at, f"failed: {event.data.get('message', '')}", "failed")
            else:
                self._close(event.at, f"stopped: the job {event.type.removeprefix('job_')}", "cancelled")
        elif self._free_since is not None:
            self._wait_until(event.at)
        self._free_since = None

    def _recover_forgotten(self, events: Sequence[Event]) -> None:
        """Only the newest events are kept: what they no longer tell is drawn from what the stage still says."""
        telling = {EventType.ATTEMPT_STARTED, *ENDINGS}
        first = next((event for event in events if event.type in telling), None)
        is_known = first is not None and first.type == EventType.ATTEMPT_STARTED and first.data.get("attempt") == 1
        if is_known or self._stage.started_at is None:
            return
        is_open = first is None and not self._stage.state.is_final
        until = first.at if first else (self._stage.finished_at or self._end)
        ending = "no longer known" if first else "" if is_open else str(self._stage.state)
        self._wait_until(self._stage.started_at)
        self._spans.append(
            Span(
                "attempt",
                self._stage.started_at,
                until,
                "Attempts whose events are no longer kept",
                ending=ending,
                outcome="unknown" if first else ending,
                worker=(self._stage.worker or "") if is_open else "",
            )
        )
        self._free_since = None if first is None else until

    def _wait_until(self, at: float) -> None:
        if self._free_since is not None and at > self._free_since:
            title = "Waiting for a worker" if self._spans else "Queued"
            self._spans.append(Span("waiting", self._free_since, at, title))
        self._free_since = None

    def _resume(self, at: float) -> None:
        if self._paused is not None:
            title = f"Paused: {self._awaited} is behind"
            self._pauses.append(Span("paused", self._paused.at, at, title, paused_seconds=at - self._paused.at))
            self._paused = None

    def _close(self, at: float, ending: str, outcome: str) -> None:
        assert self._started is not None
        self._resume(at)
        number, worker = self._started.data.get("attempt"), self._started.data.get("worker")
        self._spans.append(
            Span(
                "attempt",
                self._started.at,
                at,
                f"Attempt {number}",
                ending=ending,
                outcome=outcome,
                worker=str(worker or ""),
                attempt=number if isinstance(number, int) else 0,
            )
        )
        self._started = None

    def _finish(self) -> None:
        """What is open at the end goes on, or ended with the task, of which no event may tell."""
        state = self._stage.state
        if self._started is not None:
            if state.is_final:
                self._close(min(self._stage.finished_at or self._end, self._end), str(state), str(state))
            else:
                self._close(self._end, "", "")
        elif not state.is_final:
            self._wait_until(self._end)


def _ending(event: Event) -> str:
    reason = event.data.get("reason") or event.data.get("message")
    return ENDINGS[event.type] + (f": {reason}" if reason else "")


def _merge_pauses(spans: list[Span], timeline: Timeline) -> list[Span]:
    """Pauses that would be drawn on top of each other become one."""
    merged: list[Span] = []
    last: int | None = None
    for span in spans:
        if span.kind == "paused" and last is not None:
            before = merged[last]
            if timeline.place(span.start) - timeline.place(before.end) < NARROWEST_PERCENT:
                count, seconds = before.count + 1, before.paused_seconds + span.paused_seconds
                title = f"Paused {count} times: {before.title.partition(': ')[2]}"
                merged[last] = Span("paused", before.start, span.end, title, count=count, paused_seconds=seconds)
                continue
        merged.append(span)
        if span.kind == "paused":
            last = len(merged) - 1
    return merged
