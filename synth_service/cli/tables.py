"""Jobs, events and whatever else there are lists of, as people read them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from shared.errors import RETRY_HELPS
from shared.jobs import Event, JobRecord, State
from shared.tasks import task_of
from shared.tasks.quality import Quality, Verdict
from synth_service.client import Model, ValidatedJob, WorkerDetail
from synth_service.client.progress import UNITS, accuracy, duration, rate_and_eta, stages
from synth_service.wire import KeyDetail

_COLORS = {State.SUCCEEDED: "green", State.FAILED: "red", State.CANCELLED: "yellow", State.CANCELLING: "yellow"}


def colored(state: State) -> str:
    """The state in its color, as Rich markup."""
    color = _COLORS.get(state)
    return f"[{color}]{state}[/]" if color else str(state)


def _listing(*headings: str) -> Table:
    """A table whose first column, which commands take as their argument, is never cut."""
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    return table


def jobs_table(jobs: Sequence[JobRecord]) -> Table:
    """One row for each job."""
    table = _listing("id", "name", "state", "synthesis", "distillation", "student", "age")
    for job in jobs:
        percent = {name: f"{stage.progress.percent:.0f}%" for name, stage in stages(job)}
        table.add_row(
            job.id,
            escape(job.name),
            colored(job.state),
            percent.get("synthesis", "–"),
            percent.get("distillation", "–"),
            student_measured(job),
            duration(time.time() - job.created_at),
        )
    return table


def student_measured(job: JobRecord) -> str:
    """The student's headline metric; empty before the first measurement."""
    task = task_of(job)
    value = job.measurement.metrics.get(task.headline_metric.name) if job.measurement else None
    return "" if value is None else f"{value:.4f} {task.headline}"


def job_table(job: JobRecord) -> Table:
    """Everything of one job but its specification."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("id", job.id)
    if job.name:
        table.add_row("name", escape(job.name))
    table.add_row("state", colored(job.state))
    table.add_row("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at)))
    if job.started_at:
        heading = "took" if job.finished_at else "running for"
        table.add_row(heading, duration((job.finished_at or time.time()) - job.started_at))
    for name, stage in stages(job):
        done, total = stage.progress.done, stage.progress.total
        table.add_row(name, f"{done:,}/{total:,} {UNITS[name]} ({rate_and_eta(stage)}), attempt {stage.attempt}")
    synthesis = job.stages.synthesis
    if synthesis is not None and synthesis.shards_behind is not None:
        behind = f"{synthesis.shards_consumed:,} of {synthesis.shards:,} shards, {synthesis.shards_behind:,} behind"
        table.add_row("your program", behind)
    if job.measurement:
        table.add_row(task_of(job).headline, f"{accuracy(job)}, agreement {job.measurement.agreement:.4f}")
    if job.quality:
        table.add_row("quality", verdict(job.quality))
    for key, value in job.metadata.items():
        table.add_row(f"metadata.{escape(key)}", escape(value))
    for name, result in (job.result or {}).items():
        table.add_row(f"result.{escape(name)}", escape(str(result)))
    if job.error:
        table.add_row("error", f"[red]{escape(job.error.code)}[/]: {escape(job.error.message)}")
    return table


def summary(job: JobRecord) -> str:
    """How a finished job ended, as Rich markup."""
    if job.error is not None:
        remedy = f"; resume it with: dfkd retry {job.id}" if job.error.code in RETRY_HELPS else ""
        return f"[red]{job.id} failed[/]: {escape(job.error.code)}: {escape(job.error.message)}{remedy}"
    if job.state is not State.SUCCEEDED:
        return f"[yellow]{job.id} was {job.state}[/]; get what it has made with: dfkd fetch {job.id}"
    is_poor = job.quality is not None and job.quality.verdict is Verdict.POOR
    parts = [f"[{'yellow' if is_poor else 'green'}]{job.id} succeeded[/]"]
    if job.started_at and job.finished_at:
        parts.append(f"in {duration(job.finished_at - job.started_at)}")
    if job.measurement:
        parts.append(f"with {task_of(job).headline} {accuracy(job)}")
    told = "" if job.quality is None else f"\nquality: {verdict(job.quality)}"
    return " ".join(parts) + f"; get it with: dfkd fetch {job.id}{told}"


def verdict(quality: Quality) -> str:
    """A verdict with its reason and remedy, as Rich markup."""
    color = {Verdict.GOOD: "green", Verdict.DOUBTFUL: "yellow", Verdict.POOR: "red"}[quality.verdict]
    words = " ".join(part for part in (quality.reason, quality.remedy) if part)
    return f"[{color}]{quality.verdict}[/]. {escape(words)}"


def event_line(event: Event) -> str:
    """One event, as Rich markup."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    data = " ".join(f"{name}={_short(value)}" for name, value in event.data.items())
    task = f" [cyan]{escape(event.task)}[/]" if event.task else ""
    return f"[dim]{moment}[/]{task} [bold]{escape(event.type)}[/] {escape(data)}".rstrip()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def estimate_table(validated: ValidatedJob) -> Table:
    """What a job comes to."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in validated.estimate.model_dump().items():
        if value is not None:
            table.add_row(name.replace("_", " "), f"{value:,}")
    return table


def workers_table(workers: Sequence[WorkerDetail]) -> Table:
    """One row for each worker."""
    table = _listing("name", "role", "job", "device", "heard of")
    for worker in workers:
        age = f"{max(time.time() - worker.at, 0):.0f} s ago" if worker.at else ""
        table.add_row(escape(worker.name), worker.role or "", worker.job or "idle", escape(worker.device or ""), age)
    return table


def keys_table(keys: Sequence[KeyDetail]) -> Table:
    """One row for each key."""
    table = _listing("fingerprint", "name", "scopes", "expires", "limits", "from")
    for key in keys:
        limits = key.allowance.model_dump(exclude_none=True)
        table.add_row(
            key.fingerprint,
            escape(key.name),
            "+".join(key.scopes),
            time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(key.expires_at)) if key.expires_at else "never",
            ", ".join(f"{name.replace('_', '-')}={value}" for name, value in limits.items()),
            "settings" if key.is_configured else "POST /keys",
        )
    return table


def models_table(models: Sequence[Model]) -> Table:
    """One row for each model."""
    table = _listing("checkpoint", "file", "bytes", "network", "classes", "age")
    for model in models:
        table.add_row(
            escape(model.checkpoint),
            escape(model.filename),
            f"{model.bytes:,}",
            ", ".join(model.architectures),
            str(model.num_classes or ""),
            duration(time.time() - model.created_at) if model.created_at else "",
        )
    return table
