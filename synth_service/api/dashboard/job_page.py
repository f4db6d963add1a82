"""The page of a job, and the parts of it that the browser asks for again while the job runs.

The page itself is small: pictures, charts and events come from the same REST routes that any client uses. Parts that
are easier drawn here (progress, timeline, class histogram, shard table) are fragments of HTML.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import HTMLResponse

from shared.errors import RETRY_HELPS
from shared.jobs import JobRecord, State
from shared.storage import job_paths
from shared.tasks import task_of
from synth_service.api.dashboard.charts import charts_of, histogram, points_for
from synth_service.api.dashboard.job_history import SHARDS_PER_PAGE, JobHistories
from synth_service.api.dashboard.rendering import render
from synth_service.api.dashboard.timeline import build_timeline
from synth_service.api.dependencies import BrokerInUse, ExistingJob, StorageInUse
from synth_service.api.problems import Problem, documented
from synth_service.api.routes.outputs import get_grid
from synth_service.api.routes.previews import get_preview

MOST_LISTED_CLASSES = 200
"""Beyond it a class is typed, not chosen from a list."""

REMEDIES = {
    "worker_lost": "Look at the workers' logs: running out of memory is the usual cause. Then retry: the job resumes "
    "after its last sealed shard and checkpoint.",
    "internal_error": "The workers' logs have the whole traceback. Retry resumes from the last checkpoint.",
    "poor_quality": "Correct what the message names and submit the job again; `on_poor: warn` lets it end as it is.",
    "storage_full": "Make room in the storage. Work resumes by itself.",
    "storage_refused": "Correct the workers' credentials of the object store, or their rights. Then retry.",
    "storage_unavailable": "Bring the storage back: mount, address, access, credentials. Work resumes by itself.",
}
OTHER_REMEDY = "Correct the specification and submit it again: it is below, with the command."

router = APIRouter(include_in_schema=False)


@router.get("/ui/jobs/{job_id}", responses=documented(404, 422))
def show_job(job: ExistingJob, broker: BrokerInUse, request: Request) -> HTMLResponse:
    """The page of one job."""
    return render(
        request,
        "job.html",
        **_status(job, broker, request),
        charts=[chart.model_dump() for chart in charts_of(job)],
        points=points_for(job),
        num_classes=_num_classes(job),
        lists_classes=_num_classes(job) <= MOST_LISTED_CLASSES,
        spec_text=_pretty(job.spec),
        submit_command=submit_command(job, str(request.base_url)),
        curl_command=curl_command(job, str(request.base_url)),
    )


@router.get("/ui/jobs/{job_id}/status", responses=documented(404, 422))
def show_status(job: ExistingJob, broker: BrokerInUse, request: Request) -> HTMLResponse:
    """State, actions, error, progress and timeline."""
    return render(request, "_job_status.html", **_status(job, broker, request))


@router.get("/ui/jobs/{job_id}/classes", responses=documented(404, 422))
def show_classes(job: ExistingJob, broker: BrokerInUse, request: Request) -> HTMLResponse:
    """How many images there are of each class."""
    digest = _histories(request)[job.id].shards(broker, job.id)
    bars = histogram(digest.class_counts, _num_classes(job)) if digest.count else []
    return render(request, "_job_classes.html", job=job, digest=digest, bars=bars, counted=task_of(job).counted)


@router.get("/ui/jobs/{job_id}/shards", responses=documented(404, 422))
def show_shards(
    job: ExistingJob,
    broker: BrokerInUse,
    request: Request,
    page: Annotated[int, Query(ge=1, le=10_000_000, description="From 1, the newest shards.")] = 1,
) -> HTMLResponse:
    """A page of the table of shards, the newest first."""
    digest = _histories(request)[job.id].shards(broker, job.id)
    pages = len(digest.page_starts)
    page = min(page, pages)
    start = digest.page_starts[pages - page]
    found = broker.shards.read(job.id, start, count=SHARDS_PER_PAGE, block_seconds=0) if digest.count else []
    shards = [shard.manifest for shard in reversed(found)]
    return render(request, "_job_shards.html", job=job, digest=digest, shards=shards, number=page, pages=pages)


@router.get("/ui/jobs/{job_id}/picture", response_class=Response, responses=documented(404, 422))
def show_picture(
    job: ExistingJob,
    request: Request,
    storage: StorageInUse,
    target: Annotated[int | None, Query(alias="class", ge=0, le=100_000, description="Only of this class.")] = None,
) -> Response:
    """The newest images while there are more to come, and then the grid. No content while there are none.

    The routes of the API say 404 then, which a browser reports as an error though all is well.
    """
    has_grid = target is None and storage.exists(job_paths.grid(job.id))
    if not (has_grid and job.state.is_final):
        try:
            return get_preview(job, request, storage, target)
        except Problem as problem:
            if problem.status_code != 404:
                raise
    if has_grid:
        grid = get_grid(job, request, storage)
        grid.headers["X-Picture"] = "grid"
        return grid
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _status(job: JobRecord, broker: BrokerInUse, request: Request) -> dict[str, Any]:
    """What ``_job_status.html`` shows."""
    now = time.time()
    digest = _histories(request)[job.id].events(broker, job.id)
    return {
        "task": task_of(job),
        "job": job,
        "now": now,
        "is_behind": not digest.is_complete,
        "log_starts_after": digest.log_starts_after or "",
        "timeline": build_timeline(job, digest.milestones, now),
        "stages": [
            (title, unit, stage)
            for title, unit, stage in (
                ("Synthesis", "images", job.stages.synthesis),
                ("Distillation", "steps", job.stages.distillation),
            )
            if stage is not None
        ],
        "lag": _lag(job),
        "remedy": remedy(job),
        "can_cancel": job.state in (State.QUEUED, State.RUNNING),
        "can_retry": job.state in (State.FAILED, State.CANCELLED),
        "retry_helps": job.error is None or job.error.code in RETRY_HELPS,
        "can_delete": job.state.is_final,
    }


def _lag(job: JobRecord) -> int | None:
    """Shards announced minus shards taken, where the job has both halves or another program stands for one."""
    synthesis, distillation = job.stages.synthesis, job.stages.distillation
    if synthesis and synthesis.shards_behind is not None:
        return synthesis.shards_behind
    return max(0, synthesis.shards - distillation.shards_consumed) if synthesis and distillation else None


def remedy(job: JobRecord) -> str:
    """What to do about the job's error; empty without one."""
    return REMEDIES.get(job.error.code, OTHER_REMEDY) if job.error else ""


def submit_command(job: JobRecord, base_url: str) -> str:
    """The shell command that runs the job once more.

    No line of the specification can end the here-document early: text in JSON has no line breaks.
    """
    return f"dfkd submit - --url {base_url.rstrip('/')} <<'JOB'\n{_pretty(job.spec)}\nJOB"


def curl_command(job: JobRecord, base_url: str) -> str:
    """The same without our command line. The header with the key matters only where keys are in use."""
    return (
        f"curl --fail-with-body {base_url.rstrip('/')}/jobs \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        '  -H "Authorization: Bearer $DFKD_API_KEY" \\\n'
        f"  --data-binary @- <<'JOB'\n{_pretty(job.spec)}\nJOB"
    )


def _pretty(spec: dict[str, Any]) -> str:
    return json.dumps(spec, indent=2, ensure_ascii=False)


def _num_classes(job: JobRecord) -> int:
    teacher = job.spec.get("teacher")
    number = teacher.get("num_classes") if isinstance(teacher, dict) else None
    return number if isinstance(number, int) else 1


def _histories(request: Request) -> JobHistories:
    """Those of this process, made with the first look."""
    state = request.app.state
    if not hasattr(state, "job_histories"):
        state.job_histories = JobHistories()
    histories: JobHistories = state.job_histories
    return histories
