"""A job as the service sees it: its states, its stages and their progress, its events.

A job is made of *tasks*, the units that workers claim: one ``synthesis`` task for each partition and at
most one ``distillation`` task. Clients see two *stages*; the synthesis stage sums up its partitions.

    queued ─▶ running ─▶ succeeded | failed | cancelled
       └──────────┴─▶ cancelling ─▶ cancelled

A failed or cancelled job that is retried is ``queued`` again, with everything that it has made.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, JsonValue, model_validator

from shared.specs import JobSpec, earlier
from shared.tasks.quality import Quality


class State(StrEnum):
    """State of a job, a stage or a task. Only jobs are ever ``cancelling``."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Role(StrEnum):
    """What a worker does; each role has its queue."""

    SYNTHESIS = "synthesis"
    DISTILLATION = "distillation"


class Task(NamedTuple):
    """The unit of work that one worker claims."""

    role: Role
    partition: int = 0

    def __str__(self) -> str:
        return f"{self.role}:{self.partition}"

    @classmethod
    def parse(cls, text: str) -> Task:
        """Inverse of ``str``."""
        role, partition = text.split(":")
        return cls(Role(role), int(partition))


class JobError(BaseModel):
    """Why a job, stage or attempt failed."""

    code: str = Field(description="Stable and snake_case.")
    message: str = Field(description="What went wrong and what to do about it.")
    stage: Role | None = None


class Progress(BaseModel):
    """How far a stage is. Units: images in synthesis, steps in distillation."""

    done: int = 0
    total: int = 0
    percent: float = Field(0.0, ge=0, le=100)
    rate: float | None = Field(None, description="Units per second, lately.")
    eta_seconds: float | None = None

    @classmethod
    def of(cls, done: int, total: int, rate: float | None) -> Progress:
        """Derives percentage and remaining time."""
        eta = round((total - done) / rate, 1) if rate and done < total else None
        return cls(
            done=done,
            total=total,
            # Rounded down: 100 means done.
            percent=min(done, total) * 10_000 // total / 100 if total else 0.0,
            rate=round(rate, 3) if rate else None,
            eta_seconds=eta,
        )


class Stage(BaseModel):
    """One half of a job, or one partition of the synthesis half."""

    state: State = State.QUEUED
    attempt: int = Field(0, description="Attempts started so far.")
    worker: str | None = None
    heartbeat_at: float | None = Field(None, description="Unix time of the worker's last sign of life.")
    started_at: float | None = None
    finished_at: float | None = None
    progress: Progress = Field(default_factory=Progress)
    error: JobError | None = Field(None, description="Last error; also set while the stage is tried again.")


class SynthesisStage(Stage):
    """The synthesis half: sums and worst states over its partitions."""

    partitions: list[Stage] = Field(default_factory=list)
    shards: int = Field(0, description="Shards announced so far.")
    images: int = Field(0, description="Images in them.")
    shards_consumed: int | None = Field(
        None, description="Where another program trains (`external`): how many of them it has used up. Else null."
    )
    consumed_until: str | None = Field(
        None, description="Id of the last of these shards; `0` before the first. Null where no other program trains."
    )

    @property
    def shards_behind(self) -> int | None:
        """How far the other program is behind; None where there is none."""
        return None if self.shards_consumed is None else max(0, self.shards - self.shards_consumed)


class DistillationStage(Stage):
    """The distillation half."""

    shards_consumed: int = 0
    images_consumed: int = 0
    student_version: int = Field(0, description="Number of the newest published student snapshot.")


class Stages(BaseModel):
    """Null where the job has no such half."""

    synthesis: SynthesisStage | None = None
    distillation: DistillationStage | None = None


class Measurement(BaseModel):
    """The student against the labelled evaluation images. Fractions in [0, 1]."""

    step: int
    metrics: dict[str, float] = Field(
        default_factory=dict, description="Every metric of the job's task by name, such as `student_miou`."
    )
    student_top1: float | None = Field(None, description="Of classification; also in `metrics`.")
    teacher_top1: float | None = Field(None, description="Of classification; also in `metrics`.")
    agreement: float = Field(description="Share of images, or of pixels, on which student and teacher say the same.")

    @classmethod
    def of(cls, step: int, metrics: Mapping[str, float]) -> Measurement:
        """A measurement after so many steps."""
        return cls(step=step, **metrics)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        """Metrics may be written beside ``step`` alone, as all were before there were other tasks."""
        if not isinstance(data, dict):
            return data
        known = {name: value for name, value in data.items() if name not in ("step", "metrics")}
        written = {name: value for name, value in known.items() if value is not None}
        own = {name: value for name, value in written.items() if name in cls.model_fields}
        return {"step": data.get("step"), **own, "metrics": {**written, **data.get("metrics", {})}}


class JobRecord(BaseModel):
    """A job, as ``GET /jobs/{id}`` shows it. Times are Unix seconds."""

    id: str
    name: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    state: State
    owner: str | None = Field(None, description="Name of the API key that started it; null where there were none.")
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    retries: int = Field(0, description="Times that it was retried after it had failed or been cancelled.")
    stages: Stages
    measurement: Measurement | None = Field(None, description="The newest, where the job has an evaluation set.")
    quality: Quality | None = Field(None, description="Whether images and student are any good, as far as is known.")
    error: JobError | None = None
    result: dict[str, JsonValue] | None = Field(None, description="Of a succeeded job: what was made and how well.")
    spec: dict[str, JsonValue] = Field(description="The resolved job specification.")

    def parsed_spec(self) -> JobSpec:
        """The specification as an object. Raises pydantic.ValidationError when this version no longer accepts it."""
        return JobSpec.model_validate(earlier.complete(self.spec))


class Event(BaseModel):
    """Something that happened to a job. ``id`` orders events and is the SSE event id."""

    id: str
    type: str
    at: float
    task: str | None = Field(None, description="role:partition, where one task is meant.")
    data: dict[str, JsonValue] = Field(default_factory=dict)


def new_job_id() -> str:
    """An id that sorts by creation time to the millisecond: ``job-`` and 20 hexadecimal digits."""
    return f"job-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"


def tasks_of(spec: JobSpec) -> list[Task]:
    """The tasks that a job consists of."""
    tasks = [Task(Role.SYNTHESIS, partition) for partition in range(spec.synthesis.partitions if spec.synthesis else 0)]
    return [*tasks, Task(Role.DISTILLATION)] if spec.distillation else tasks


def task_totals(spec: JobSpec) -> dict[Task, int]:
    """Units of work in each task: images for synthesis, steps for distillation."""
    totals: dict[Task, int] = {}
    for task in tasks_of(spec):
        if task.role is Role.SYNTHESIS:
            assert spec.synthesis is not None
            totals[task] = spec.synthesis.images_of_partition(task.partition)
        else:
            assert spec.distillation is not None
            assert spec.distillation.steps is not None
            totals[task] = spec.distillation.steps
    return totals


def record_from_fields(fields: Mapping[str, str]) -> JobRecord:
    """A job record from the flat fields of its Redis hash (see ``shared.broker.keys``)."""
    tasks = [Task.parse(text) for text in json.loads(fields["tasks"])]
    partitions = [_stage(fields, task) for task in tasks if task.role is Role.SYNTHESIS]
    stages = Stages()
    if partitions:
        stages.synthesis = _sum_up(partitions, fields)
    if Task(Role.DISTILLATION) in tasks:
        stage = _stage(fields, Task(Role.DISTILLATION))
        stages.distillation = DistillationStage(
            **stage.model_dump(),
            shards_consumed=int(fields.get("shards_consumed", 0)),
            images_consumed=int(fields.get("images_consumed", 0)),
            student_version=int(fields.get("student_version", 0)),
        )
    return JobRecord(
        id=fields["id"],
        name=fields["name"],
        metadata=json.loads(fields["metadata"]),
        state=State(fields["state"]),
        owner=fields.get("owner") or None,
        created_at=float(fields["created_at"]),
        started_at=_number(fields.get("started_at")),
        finished_at=_number(fields.get("finished_at")),
        retries=int(fields.get("retries", 0)),
        stages=stages,
        measurement=_json(fields.get("measurement")),
        quality=(_json(fields.get("result")) or {}).get("quality") or _json(fields.get("quality")),
        error=_json(fields.get("error")),
        result=_json(fields.get("result")),
        spec=json.loads(fields["spec"]),
    )


def _stage(fields: Mapping[str, str], task: Task) -> Stage:
    def field(name: str) -> str | None:
        return fields.get(f"{task}:{name}")

    return Stage(
        state=State(field("state") or State.QUEUED),
        attempt=int(field("attempt") or 0),
        worker=field("worker") or None,
        heartbeat_at=_number(field("heartbeat_at")),
        started_at=_number(field("started_at")),
        finished_at=_number(field("finished_at")),
        progress=Progress.of(int(field("done") or 0), int(field("total") or 0), _number(field("rate"))),
        error=_json(field("error")),
    )


def _sum_up(partitions: list[Stage], fields: Mapping[str, str]) -> SynthesisStage:
    """One stage from its partitions: running while any runs, succeeded once all did, else the worst state."""
    states = {partition.state for partition in partitions}
    if len(states) == 1:
        state = partitions[0].state
    elif State.FAILED in states:
        state = State.FAILED
    elif State.RUNNING in states or (State.SUCCEEDED in states and State.QUEUED in states):
        state = State.RUNNING
    else:
        state = State.CANCELLED
    running = [partition for partition in partitions if partition.state is State.RUNNING]
    rates = [partition.progress.rate for partition in running if partition.progress.rate]
    finished = [partition.finished_at for partition in partitions]
    return SynthesisStage(
        state=state,
        attempt=max(partition.attempt for partition in partitions),
        worker=", ".join(partition.worker for partition in running if partition.worker) or None,
        heartbeat_at=max((p.heartbeat_at for p in partitions if p.heartbeat_at), default=None),
        started_at=min((p.started_at for p in partitions if p.started_at), default=None),
        finished_at=max((time for time in finished if time), default=None) if all(finished) else None,
        progress=Progress.of(
            sum(partition.progress.done for partition in partitions),
            sum(partition.progress.total for partition in partitions),
            sum(rates) if rates else None,
        ),
        error=next((partition.error for partition in partitions if partition.error), None),
        partitions=partitions,
        shards=int(fields.get("shards", 0)),
        images=sum(int(fields.get(f"{Task(Role.SYNTHESIS, p)}:images", 0)) for p in range(len(partitions))),
        shards_consumed=int(fields.get("shards_consumed", 0)) if "consumed_until" in fields else None,
        consumed_until=fields.get("consumed_until"),
    )


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _json(text: str | None) -> Any:
    return json.loads(text) if text else None
