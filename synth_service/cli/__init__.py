"""The command line: ``dfkd``.

Commands about jobs stand in ``job_commands``, those about the service in ``service_commands``; how commands end, how a
job file is read and written, and how things look as tables stand in the modules beside. What takes long to import is
imported where it is used, so that ``dfkd --help`` is quick. torch is left to other processes but for ``init`` and
``doctor``.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from synth_service.cli import job_commands, key_commands, service_commands, time_estimate

app = typer.Typer(
    name="dfkd",
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


app.command()(service_commands.up)
app.command()(service_commands.demo)
app.command()(service_commands.run)
app.command()(service_commands.init)
app.command()(service_commands.doctor)
app.command()(job_commands.validate)
app.command()(time_estimate.estimate)
app.command()(job_commands.submit)
app.command()(job_commands.watch)
app.command()(job_commands.logs)
app.command()(job_commands.jobs)
app.command()(job_commands.job)
app.command()(job_commands.cancel)
app.command()(job_commands.retry)
app.command()(job_commands.fetch)
app.command()(job_commands.delete)
app.command()(service_commands.upload)
app.command()(service_commands.models)
app.command()(service_commands.workers)
app.command()(key_commands.key)
app.command()(key_commands.keys)


def main() -> None:
    """Entry point of `dfkd`."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows what it cannot as `?`, and no command dies of it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
