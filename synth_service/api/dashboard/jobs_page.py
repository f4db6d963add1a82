"""The first page: all jobs, newest first, and the part of it that the browser asks for again and again.

The list is rendered on the server each time and sent only when it differs (ETag and 304). What the next
question may cost decides when it is asked: an open page takes a fixed share of a core, whatever it lists.
"""

import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator, StringConstraints
from starlette.responses import HTMLResponse, RedirectResponse, Response

from shared.jobs import JobRecord, Stage, State
from shared.tasks import task_of
from shared.tasks.quality import Verdict
from synth_service.api.dashboard.rendering import query, render, render_text
from synth_service.api.dependencies import JOB_ID_PATTERN, BrokerInUse, SettingsInUse
from synth_service.api.files import matches
from synth_service.api.security.auth import CallerInUse
from synth_service.digits_example import example_folder

JOBS_PER_PAGE = 25
LONGEST_ERROR = 300

SHARE_WHILE_IDLE = 0.004
SHARE_WHILE_RUNNING = 0.012
"""Of a core, at most, for one page that is looked at, however long a search its filter takes."""

SECONDS_BESIDES = 0.006
"""Of the processor, for what a look takes besides the reading of jobs."""

PERIODS = (2, 4, 8, 15, 30, 60)
"""Seconds between two looks at the list. Few, so that the list does not differ by this alone."""

router = APIRouter()


def _or_none(value: object) -> object:
    """An emptied field of a form is no filter."""
    return None if value == "" else value


After = Annotated[Annotated[str, StringConstraints(pattern=JOB_ID_PATTERN)] | None, BeforeValidator(_or_none), Query()]
Status = Annotated[State | None, BeforeValidator(_or_none), Query()]
Name = Annotated[Annotated[str, StringConstraints(max_length=200)] | None, BeforeValidator(_or_none), Query()]


@dataclass(frozen=True)
class StageBar:
    """How far one half of a job is, as a bar with figures."""

    title: str
    unit: str
    state: State
    percent: float
    done: int
    total: int


@dataclass(frozen=True)
class JobRow:
    """A job as a line of the list."""

    id: str
    name: str
    state: State
    teacher: str
    student: str | None
    """None when the job only makes images."""
    bars: tuple[StageBar | None, StageBar | None]
    measured: float | None
    """The student's headline metric."""
    metric: str
    agreement: float | None
    created_at: float
    eta_seconds: float | None
    took_seconds: float | None
    error: str | None
    is_poor: bool
    """Its images or its student are, as judged without labels."""

    @classmethod
    def of(cls, job: JobRecord) -> "JobRow":
        """The line of a job."""
        synthesis, distillation = job.stages.synthesis, job.stages.distillation
        estimates = [
            stage.progress.eta_seconds
            for stage in (synthesis, distillation)
            if stage is not None and stage.state is State.RUNNING and stage.progress.eta_seconds is not None
        ]
        error = _error_of(job)
        task = task_of(job)
        return cls(
            id=job.id,
            name=job.name,
            state=job.state,
            teacher=_arch(job.spec.get("teacher")) or "?",
            student=_arch(job.spec.get("student")),
            bars=(
                _bar("Synthesis", "images", synthesis, job.state),
                _bar("Distillation", "steps", distillation, job.state),
            ),
            measured=job.measurement.metrics.get(task.headline_metric.name) if job.measurement else None,
            metric=task.headline_metric.label,
            agreement=job.measurement.agreement if job.measurement else None,
            created_at=job.created_at,
            eta_seconds=max(estimates, default=None) if job.state is State.RUNNING else None,
            took_seconds=job.finished_at - job.started_at if job.finished_at and job.started_at else None,
            error=error if error is None or len(error) <= LONGEST_ERROR else f"{error[:LONGEST_ERROR]}…",
            is_poor=job.quality is not None and job.quality.verdict is Verdict.POOR,
        )


@router.get("/", response_class=RedirectResponse)
@router.get("/ui", response_class=RedirectResponse)
async def go_to_jobs() -> RedirectResponse:
    """The dashboard is what a browser is shown first."""
    return RedirectResponse("/ui/")


@router.get("/ui/")
def show_jobs(
    request: Request,
    broker: BrokerInUse,
    caller: CallerInUse,
    settings: SettingsInUse,
    after: After = None,
    state: Status = None,
    name: Name = None,
) -> HTMLResponse:
    """The page."""
    listed = _list_jobs(broker, caller.owner_filter, after, state, name)
    return render(request, "jobs.html", **listed, has_example=example_folder() is not None)


@router.get("/ui/jobs")
def show_job_list(
    request: Request,
    broker: BrokerInUse,
    caller: CallerInUse,
    settings: SettingsInUse,
    after: After = None,
    state: Status = None,
    name: Name = None,
) -> Response:
    """The list alone: 304 while the browser has it as it is."""
    listed = _list_jobs(broker, caller.owner_filter, after, state, name)
    content = render_text(request, "_jobs.html", **listed, has_example=example_folder() is not None)
    # When to ask again follows from how long this look took, and is no change of the list.
    compared = content.replace(f"every {listed['period_seconds']}s", "every")
    headers = {"ETag": f'W/"{sha256(compared.encode()).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("hx-trigger-name"):  # somebody types into the filter: the address shows what is seen
        headers["HX-Replace-Url"] = f"/ui/{query(state=state, name=name)}"
    if matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(content, headers=headers)


def _list_jobs(
    broker: BrokerInUse, owner: str | None, after: str | None, state: State | None, name: str | None
) -> dict[str, Any]:
    """What the template of the list needs."""
    started = time.thread_time()
    jobs, has_more = broker.jobs.list(after=after, limit=JOBS_PER_PAGE, state=state, name=name, owner=owner)
    seconds = time.thread_time() - started + SECONDS_BESIDES
    is_running = any(job.state in (State.RUNNING, State.CANCELLING) for job in jobs)
    share = SHARE_WHILE_RUNNING if is_running else SHARE_WHILE_IDLE
    return {
        "rows": [JobRow.of(job) for job in jobs],
        "states": list(State),
        "after": after,
        "state": state,
        "name": name,
        "has_more": has_more,
        "period_seconds": next((each for each in PERIODS if each * share >= seconds), PERIODS[-1]),
    }


def _bar(title: str, unit: str, stage: Stage | None, job_state: State) -> StageBar | None:
    if stage is None:
        return None
    # A worker that has not heard yet that its job has ended does not make the stage one that runs.
    state = State.CANCELLED if job_state.is_final and not stage.state.is_final else stage.state
    return StageBar(title, unit, state, stage.progress.percent, stage.progress.done, stage.progress.total)


def _error_of(job: JobRecord) -> str | None:
    """Why the job failed, or what holds it up at the moment."""
    if job.error is not None:
        return job.error.message
    if job.state.is_final:
        return None
    stages = (job.stages.synthesis, job.stages.distillation)
    return next((stage.error.message for stage in stages if stage is not None and stage.error), None)


def _arch(network: object) -> str | None:
    return str(network["arch"]) if isinstance(network, dict) and network.get("arch") else None
