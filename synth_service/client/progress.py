"""How a job looks while it runs: two live bars on a terminal or in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from shared.jobs import JobRecord, Stage
from shared.tasks import task_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

LINE_SECONDS: Final = 10.0
UNITS: Final = {"synthesis": "images", "distillation": "steps"}


class Display(Protocol):
    """Shows a job while it runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: JobRecord) -> None:
        """Brings the display up to date."""

    def say(self, text: str) -> None:
        """Adds a line that stays."""


def stages(job: JobRecord) -> list[tuple[str, Stage]]:
    """The stages that the job has, in order."""
    both: list[tuple[str, Stage | None]] = [
        ("synthesis", job.stages.synthesis),
        ("distillation", job.stages.distillation),
    ]
    return [(name, stage) for name, stage in both if stage is not None]


def duration(seconds: float) -> str:
    """Seconds as a clock shows them, such as 1:02:03 or 0:45."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate_and_eta(stage: Stage) -> str:
    """Speed and remaining time of a stage, or its state while there is no speed."""
    if stage.progress.rate is None or stage.state.is_final:
        return str(stage.state)
    eta = stage.progress.eta_seconds
    return f"{stage.progress.rate:,.1f}/s" + (f", {duration(eta)} left" if eta is not None else "")


def accuracy(job: JobRecord) -> str:
    """The newest measurement; empty before the first."""
    measured = job.measurement
    if measured is None:
        return ""
    task = task_of(job)
    student, teacher = (
        measured.metrics.get(metric.name, 0.0) for metric in (task.headline_metric, task.teacher_metric)
    )
    return f"student {student:.4f}, teacher {teacher:.4f}"


def display_for(console: Console | None = None) -> Display:
    """Bars for a terminal, lines for everything else; on stderr if no console is given."""
    if console is None:
        from synth_service.client.notebook import NotebookDisplay, in_notebook
        from synth_service.client.terminal import Terminal

        if in_notebook():
            return NotebookDisplay()
        console = Terminal(stderr=True, highlight=False)
    return BarDisplay(console) if console.is_terminal or console.is_jupyter else LineDisplay(console)


class NoDisplay:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, job: JobRecord) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class BarDisplay:
    """A bar for each stage, redrawn in place."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}", justify="right"),
            TextColumn("{task.fields[note]}", justify="right"),
            TextColumn("[bold]{task.fields[accuracy]}"),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job: JobRecord) -> None:
        """Moves the bars."""
        for name, stage in stages(job):
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, count="", note="", accuracy="")
            done, total = stage.progress.done, stage.progress.total
            self._progress.update(
                self._bars[name],
                completed=done,
                total=total,
                count=f"{done:,}/{total:,} {UNITS[name]}",
                note=rate_and_eta(stage),
                accuracy=accuracy(job) if name == "distillation" else "",
            )
        self._progress.refresh()

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, style="yellow", markup=False)


class LineDisplay:
    """A line for every change of state and one every ten seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_at = 0.0
        self._states: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, job: JobRecord) -> None:
        """Writes a line if it is time for one."""
        states = [str(job.state), *(str(stage.state) for _, stage in stages(job))]
        if states == self._states and time.monotonic() - self._shown_at < LINE_SECONDS:
            return
        self._states, self._shown_at = states, time.monotonic()
        parts = [f"{job.id} {job.state}"]
        for name, stage in stages(job):
            done, total = stage.progress.done, stage.progress.total
            parts.append(f"{name} {done:,}/{total:,} {UNITS[name]} ({rate_and_eta(stage)})")
        self.say(" · ".join([*parts, accuracy(job)] if job.measurement else parts))

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False)
