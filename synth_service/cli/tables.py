"""Jobs as tables for people."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from shared.jobs import JobRecord, State
from synth_service.cli.watching import UNITS, accuracy, duration, rate_and_eta, stages

_COLOURS = {State.SUCCEEDED: "green", State.FAILED: "red", State.CANCELLED: "yellow", State.CANCELLING: "yellow"}


def coloured(state: State) -> str:
    """The state in its colour, as Rich markup."""
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else str(state)


def jobs_table(jobs: Sequence[JobRecord]) -> Table:
    """One row for each job."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, overflow="fold")
    for heading in ("name", "state", "synthesis", "distillation", "student top-1", "age"):
        table.add_column(heading)
    for job in jobs:
        percent = {name: f"{stage.progress.percent:.0f}%" for name, stage in stages(job)}
        table.add_row(
            job.id,
            escape(job.name),
            coloured(job.state),
            percent.get("synthesis", "–"),
            percent.get("distillation", "–"),
            f"{job.measurement.student_top1:.4f}" if job.measurement else "",
            duration(time.time() - job.created_at),
        )
    return table


def job_table(job: JobRecord) -> Table:
    """Everything of one job but its specification."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("id", job.id)
    if job.name:
        table.add_row("name", escape(job.name))
    table.add_row("state", coloured(job.state))
    table.add_row("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at)))
    if job.started_at:
        table.add_row("running for", duration((job.finished_at or time.time()) - job.started_at))
    for name, stage in stages(job):
        done, total = stage.progress.done, stage.progress.total
        table.add_row(name, f"{done:,}/{total:,} {UNITS[name]} ({rate_and_eta(stage)}), attempt {stage.attempt}")
    if job.measurement:
        table.add_row("top-1", f"{accuracy(job)}, agreement {job.measurement.agreement:.4f}")
    for key, value in job.metadata.items():
        table.add_row(f"metadata.{escape(key)}", escape(value))
    for name, result in (job.result or {}).items():
        table.add_row(f"result.{escape(name)}", escape(str(result)))
    if job.error:
        table.add_row("error", f"[red]{escape(job.error.code)}[/]: {escape(job.error.message)}")
    return table
