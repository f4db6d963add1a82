"""The comparison of two or three jobs: their charts over one axis, where their specifications differ, what came out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from pydantic import JsonValue
from starlette.responses import HTMLResponse

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.tasks import TASK_NAMES, describe_task
from synth_service.api.dashboard.charts import Chart, charts_of, points_for
from synth_service.api.dashboard.rendering import render
from synth_service.api.dependencies import JOB_ID_PATTERN, BrokerInUse, existing_job
from synth_service.api.problems import Problem, documented
from synth_service.api.security.auth import Caller, CallerInUse

MOST_JOBS = 3
JOBS_OFFERED = 100
ABSENT = "–"
NOT_COMPARED = frozenset({"name"})
"""It is in the head of every column."""

router = APIRouter(include_in_schema=False)


class Row(NamedTuple):
    """One line of a table: a cell for each job."""

    label: str
    cells: list[Any]
    format: str = "text"


METRICS = {metric.name: (metric.label, "percent") for task in map(describe_task, TASK_NAMES) for metric in task.metrics}
RESULTS = {
    **METRICS,
    "images": ("Images", "number"),
    "shards": ("Shards", "number"),
    "bytes": ("Size of the dataset", "bytes"),
    "synthesis_seconds": ("Synthesis time", "duration"),
    "synthesis_images_per_second": ("Images per second", "number"),
    "kd_steps": ("Distillation steps", "number"),
    "kd_seconds": ("Distillation time", "duration"),
    "kd_steps_per_second": ("Distillation steps per second", "number"),
}


@router.get("/ui/compare", responses=documented(422))
def compare(
    broker: BrokerInUse,
    caller: CallerInUse,
    request: Request,
    job: Annotated[list[str] | None, Query(max_length=50, description="Ids of the jobs.")] = None,
) -> HTMLResponse:
    """Jobs side by side; with fewer than two, the choice of them."""
    wanted = list(dict.fromkeys(each for each in job or [] if each))
    jobs, missing = _find(broker, caller, wanted[:MOST_JOBS])
    is_comparison = len(jobs) >= 2
    offered, _ = broker.jobs.list(limit=JOBS_OFFERED, owner=caller.owner_filter)
    known = {each.id for each in offered}
    return render(
        request,
        "compare.html",
        jobs=jobs,
        missing=missing,
        is_too_many=len(wanted) > MOST_JOBS,
        most_jobs=MOST_JOBS,
        offered=[*(each for each in jobs if each.id not in known), *offered],
        is_comparison=is_comparison,
        charts=[chart.model_dump() for chart in comparison_charts(jobs)] if is_comparison else [],
        stores=[
            {
                "url": f"/jobs/{each.id}/metrics",
                "label": each.name or each.id,
                "start": each.started_at or each.created_at,
                "final": each.state.is_final,
            }
            for each in jobs
        ],
        points=points_for(*jobs),
        differences=spec_differences(jobs) if is_comparison else [],
        results=results_of(jobs) if is_comparison else [],
    )


def _find(broker: Broker, caller: Caller, ids: Sequence[str]) -> tuple[list[JobRecord], list[str]]:
    """The jobs that there are, and the ids of which there is none."""
    jobs: list[JobRecord] = []
    missing: list[str] = []
    for each in ids:
        try:
            if not re.fullmatch(JOB_ID_PATTERN, each):
                raise KeyError(each)
            jobs.append(existing_job(each, broker, caller))
        except (KeyError, Problem):
            missing.append(each)
    return jobs, missing


def comparison_charts(jobs: Sequence[JobRecord]) -> list[Chart]:
    """A chart for each value that any of the jobs has: lines are jobs here, so each value needs a chart of its own.

    ``units_of_jobs`` tells which of the jobs have it.
    """
    charts: dict[str, Chart] = {}
    for place, job in enumerate(jobs):
        for chart in charts_of(job):
            if chart.kind == "lag":
                continue
            for series in chart.series:
                key = f"{chart.id}-{series.name}"
                title = chart.title if len(chart.series) == 1 else f"{chart.title}: {series.label}"
                merged = charts.setdefault(
                    key, chart.model_copy(update={"id": key, "title": title, "series": [series], "units_of_jobs": {}})
                )
                merged.units_of_jobs[place] = chart.units_per_step
    return list(charts.values())


def spec_differences(jobs: Sequence[JobRecord]) -> list[Row]:
    """The fields in which the specifications are not all the same, under their paths."""
    flat = [dict(_flatten(job.spec)) for job in jobs]
    paths = dict.fromkeys(path for fields in flat for path in fields)
    rows = [Row(path, [fields.get(path, ABSENT) for fields in flat]) for path in paths if path not in NOT_COMPARED]
    return [row for row in rows if len(set(row.cells)) > 1]


def _flatten(value: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every field. Lists are values: an element alone says little."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        yield path, "[" + ", ".join(_text(each) for each in value) + "]"
    else:
        yield path, _text(value)


def _text(value: JsonValue) -> str:
    if value is None or value == {}:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def results_of(jobs: Sequence[JobRecord]) -> list[Row]:
    """What came out, as far as any of the jobs has come; the newest measurement stands in for a missing result."""
    found = [_results(job) for job in jobs]
    rows = [
        Row(label, [fields.get(name) for fields in found], format)
        for name, (label, format) in RESULTS.items()
        if any(name in fields for fields in found)
    ]
    taken = [job.finished_at - job.started_at if job.finished_at and job.started_at else None for job in jobs]
    return [*rows, Row("From start to end", taken, "duration")] if any(taken) else rows


def _results(job: JobRecord) -> dict[str, Any]:
    measured = job.measurement.metrics if job.measurement else {}
    return {**measured, **(job.result or {})}
