"""The command line: ``dfkd``.

Each command is a function here; how commands end, how a job is read and how it is followed stand in the
modules beside. What takes long to import is imported where it is used, so that ``dfkd --help`` is quick, and
torch never is: the work is done by other processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from shared.client import DEFAULT_URL, ServerUnreachable
from shared.jobs import JobRecord, State
from synth_service.cli.job_file import InvalidJobFile, load_job_file
from synth_service.cli.outcomes import ExitCode, connected, fail, messages, output, print_json
from synth_service.cli.tables import job_table, jobs_table
from synth_service.cli.watching import display_for, duration, watch

app = typer.Typer(
    name="dfkd",
    help="Data-free knowledge distillation: from a trained teacher to a trained student, without training data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Url = Annotated[str, typer.Option("--url", envvar="DFKD_URL", help="Address of the service.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, as `dfkd jobs` lists it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
Storage = Annotated[str | None, typer.Option(help="Folder or s3:// address for everything that is made.")]


def main() -> None:
    """Entry point of `dfkd`."""
    app()


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address the API listens on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Its port; 0 picks a free one [8000].")] = None,
    synth_workers: Annotated[int, typer.Option(min=0, max=256, help="Processes that make images.")] = 1,
    distillers: Annotated[int, typer.Option(min=0, max=256, help="Processes that train students.")] = 1,
    storage: Storage = None,
) -> None:
    """Run the whole service here until Ctrl-C.

    Without REDIS_URL it starts a server of its own. What is not given comes from DFKD_HOST, DFKD_PORT and
    DFKD_STORAGE.
    """
    from synth_service.cli.running import run_service

    run_service(host=host, port=port, synth_workers=synth_workers, distillers=distillers, storage=storage)


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the job [as in its file].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON on stdout.")] = False,
    storage: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("dfkd-demo"),
) -> None:
    """Distil a network that reads digits, without a digit: the whole service, started, used and stopped."""
    from synth_service.demo import run_demo

    run_demo(storage=storage, seed=seed, as_json=as_json)


@app.command()
def submit(
    job_file: Annotated[str, typer.Argument(metavar="FILE", help="The job, YAML or JSON; - reads stdin.")],
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field; may be repeated.")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Start a job."""
    try:
        spec = load_job_file(job_file, changes or ())
    except InvalidJobFile as error:
        fail(str(error), ExitCode.USAGE)
    with connected(url) as client:
        job = client.submit(spec)
    if follow:
        messages.print(f"submitted {job.id}")
        _follow(job.id, url, as_json)
    elif as_json:
        print_json(job)
    else:
        output.print(job.id)
        messages.print(f"[dim]follow it with: dfkd watch {job.id}[/]")


@app.command(name="watch")
def watch_command(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Follow a job to its end. Ctrl-C stops the watching, not the job."""
    _follow(job_id, url, as_json)


@app.command(name="jobs")
def jobs_command(
    status: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name contains this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs to show.")] = 20,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    with connected(url) as client:
        page = client.jobs(status=status, name=name, limit=limit)
    if as_json:
        print_json(page)
    elif page.data:
        output.print(jobs_table(page.data))
        if page.has_more:
            messages.print("[dim]there are more; show them with --limit[/]")
    else:
        messages.print("no jobs")


@app.command(name="job")
def job_command(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show one job."""
    with connected(url) as client:
        job = client.job(job_id)
    if as_json:
        print_json(job)
    else:
        output.print(job_table(job))


@app.command()
def cancel(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Ask a job to stop; what it has made stays."""
    with connected(url) as client:
        job = client.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        output.print(f"{job.id} {job.state}")


@app.command()
def delete(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Remove a finished job with its shards, its student and its history."""
    with connected(url) as client:
        client.delete(job_id)
    output.print(f"{job_id} deleted")


@app.command()
def fetch(
    job_id: JobId,
    to: Annotated[Path | None, typer.Option(help="Folder to download into [./ID].")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Download what a job has made: shards, each checked, student, index, dataset card and picture grid."""
    from synth_service.cli.fetching import fetch_job

    folder = to or Path(job_id)
    with connected(url) as client:
        fetched = fetch_job(client, job_id, folder, say=lambda text: messages.print(escape(text)))
    if as_json:
        print_json({"folder": str(folder), "files": fetched})
    else:
        output.print(f"{len(fetched)} files in {escape(str(folder))}")


def _follow(job_id: str, url: str, as_json: bool) -> None:
    """Watches a job and ends the command with its outcome."""
    with connected(url) as client:
        try:
            job = watch(client, job_id, display_for(messages))
        except KeyboardInterrupt:
            messages.print(f"stopped watching; {job_id} goes on. Follow it with: dfkd watch {job_id}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except ServerUnreachable as error:
            fail(f"{error}; {job_id} may still be running, follow it with: dfkd watch {job_id}", ExitCode.UNREACHABLE)
    if as_json:
        print_json(job)
    else:
        output.print(summary(job))
    if job.state is not State.SUCCEEDED:
        raise typer.Exit(ExitCode.FAILED)


def summary(job: JobRecord) -> str:
    """How a finished job ended, as Rich markup."""
    if job.error is not None:
        return f"[red]{job.id} failed[/]: {escape(job.error.code)}: {escape(job.error.message)}"
    if job.state is not State.SUCCEEDED:
        return f"[yellow]{job.id} was {job.state}[/]; what was made can be had with: dfkd fetch {job.id}"
    parts = [f"[green]{job.id} succeeded[/]"]
    if job.started_at and job.finished_at:
        parts.append(f"in {duration(job.finished_at - job.started_at)}")
    if measured := job.measurement:
        parts.append(f"with student top-1 {measured.student_top1:.4f} (teacher {measured.teacher_top1:.4f})")
    return " ".join(parts) + f"; get it with: dfkd fetch {job.id}"
