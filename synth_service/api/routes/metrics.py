"""Measured values of a job, for charts: all of them in pages, or as few as a chart can show.

Rows are encoded by hand: a model for each of 100,000 rows would take seconds.
"""

import json
from typing import Annotated

from fastapi import APIRouter, Query, Response

from shared.broker import Reports
from shared.broker.reports import MetricRow, stream_position
from synth_service.api.dependencies import AfterEntry, BrokerInUse, ExistingJob
from synth_service.api.downsampling import SMALLEST, downsample
from synth_service.api.problems import documented
from synth_service.wire import MetricList

router = APIRouter(tags=["outputs"])

MOST_POINTS = 2000
READ_WHOLE_ROWS = 4096
"""Up to so many rows a chart is drawn from all of them, beyond from the telling ones of each block."""


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=MetricList,
    responses=documented(404, 422),
    summary="Measured values",
)
def list_metrics(
    job: ExistingJob,
    broker: BrokerInUse,
    after: AfterEntry = None,
    since_step: Annotated[int, Query(ge=0, le=2**53, description="Only values of this step and later.")] = 0,
    task: Annotated[
        str | None, Query(pattern=r"^(synthesis|distillation):\d{1,4}$", description="Only values of this task.")
    ] = None,
    points: Annotated[
        int | None,
        Query(
            ge=SMALLEST,
            le=MOST_POINTS,
            description="At most so many values of each task and series, least and greatest kept. Replaces `limit`.",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100_000, description="Most rows to return.")] = 10_000,
) -> Response:
    """Losses and accuracies over time. To follow a job, ask on with `after` = the last id that you have."""

    reports = broker.reports
    has_more = False
    if points is not None:
        rows = downsample(_rows_for_chart(reports, job.id, after, since_step, task), points)
    elif since_step == 0 and task is None:
        rows = reports.metric_rows(job.id, after=after, limit=limit + 1)
        rows, has_more = rows[:limit], len(rows) > limit
    else:
        rows = _wanted(reports.metric_rows(job.id, after=after), since_step, task)
        rows, has_more = rows[:limit], len(rows) > limit
    return Response(_encode(rows, has_more), media_type="application/json")


def _wanted(rows: list[MetricRow], since_step: int, task: str | None) -> list[MetricRow]:
    return [row for row in rows if row.step >= since_step and task in (None, row.task)]


def _rows_for_chart(
    reports: Reports, job_id: str, after: str | None, since_step: int, task: str | None
) -> list[MetricRow]:
    """All wanted rows where they are few, the telling ones of each block where they are many."""
    rows, total = reports.metrics_overview(job_id, after=after)
    wanted = _wanted(rows, since_step, task)
    if rows and total * len(wanted) > READ_WHOLE_ROWS * len(rows):
        return wanted
    # The overview has the first and the last row of each block, so no wanted row lies before the last unwanted one
    # that a task has there.
    first = {row.task: stream_position(row.id) for row in reversed(wanted)}
    last_unwanted = {row.task: row.id for row in rows if stream_position(row.id) < first.get(row.task, (0, 0))}
    starts = [last_unwanted.get(each) for each in first]
    start = min((each for each in starts if each is not None), key=stream_position) if all(starts) and starts else after
    return _wanted(reports.metric_rows(job_id, after=start), since_step, task)


def _encode(rows: list[MetricRow], has_more: bool) -> str:
    return json.dumps(
        {"data": [row._asdict() for row in rows], "has_more": has_more}, allow_nan=False, separators=(",", ":")
    )
