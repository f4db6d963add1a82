"""How a job looks in a notebook: bars as HTML, and the newest picture of its images. Needs IPython, and no widgets."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from types import TracebackType
from typing import Any, Final, Self

from shared.jobs import JobRecord
from synth_service.client.progress import UNITS, accuracy, rate_and_eta, stages

COLORS: Final = {"succeeded": "#2c9a5e", "failed": "#d0454c", "cancelled": "#c98a1b"}
RUNNING: Final = "#3f7fde"


def job_html(job: JobRecord, *, page: str = "", picture: bytes | None = None) -> str:
    """A job as a few lines of HTML.

    Args:
        job: as it is now.
        page: address of its page on the dashboard.
        picture: a PNG of its images.
    """
    color = COLORS.get(str(job.state), RUNNING)
    name = f'<a href="{escape(page)}">{escape(job.name or job.id)}</a>' if page else escape(job.name or job.id)
    parts = [f'<p><b>{name}</b> <code>{job.id}</code> <b style="color:{color}">{job.state}</b></p>']
    for title, stage in stages(job):
        done, total = stage.progress.done, stage.progress.total
        parts.append(
            f'<div>{title} <progress max="100" value="{stage.progress.percent:.1f}" '
            f'aria-label="{title}"></progress> {done:,}/{total:,} {UNITS[title]} ({escape(rate_and_eta(stage))})</div>'
        )
    if job.measurement:
        parts.append(f"<div>{escape(accuracy(job))}</div>")
    if job.error:
        parts.append(f"<div><code>{escape(job.error.code)}</code>: {escape(job.error.message)}</div>")
    if picture:
        parts.append(
            f'<img alt="synthetic images" style="image-rendering:pixelated;max-width:100%" '
            f'src="data:image/png;base64,{b64encode(picture).decode()}">'
        )
    return f'<div class="dfkd-job">{"".join(parts)}</div>'


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class NotebookDisplay:
    """The job's bars in the output of a cell, redrawn in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._lines: list[str] = []
        self._job: JobRecord | None = None

    def __enter__(self) -> Self:
        from IPython.display import HTML, display

        self._handle = display(HTML("<i>waiting for the service …</i>"), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, job: JobRecord) -> None:
        """Redraws the bars."""
        self._job = job
        self._draw()

    def say(self, text: str) -> None:
        """A line below the bars."""
        self._lines.append(text)
        self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        drawn = job_html(self._job) if self._job is not None else ""
        self._handle.update(HTML(drawn + "".join(f"<div><i>{escape(line)}</i></div>" for line in self._lines)))
