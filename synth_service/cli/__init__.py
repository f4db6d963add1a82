"""The command line: ``dfkd``.

Commands about jobs stand in ``job_commands``, those about the service in ``service_commands``; how commands end, how a
job file is read and written, and how things look as tables stand in the modules beside. A command is imported when it
runs (``lazy_commands``), so that ``dfkd --help`` is quick. torch is left to other processes but for ``init`` and
``doctor``.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from synth_service.cli.lazy_commands import LazyGroup

app = typer.Typer(
    name="dfkd",
    cls=LazyGroup,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 service unreachable, 130 interrupted (the job continues).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"dfkd {version('fast-dfkd')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Data-free knowledge distillation: from a trained teacher to a trained student, without training data."""


def main() -> None:
    """Entry point of `dfkd`."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows what it cannot as `?`, and no command dies of it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
