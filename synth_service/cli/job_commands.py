"""Commands about jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from shared.jobs import State
from synth_service.cli.job_file import InvalidJobFile, RefusedJob, check_job, load_job_file
from synth_service.cli.job_ids import find_job
from synth_service.cli.options import ApiKey, Changes, JobFile, JobId, Json, Url
from synth_service.cli.outcomes import (
    ExitCode,
    connected,
    dashboard_page,
    fail,
    messages,
    output,
    print_json,
    show,
    show_field_errors,
)
from synth_service.cli.tables import estimate_table, event_line, job_table, jobs_table, summary
from synth_service.client import ServerUnreachable, ValidatedJob
from synth_service.client.connection import DEFAULT_URL
from synth_service.client.progress import display_for


def validate(
    job_file: JobFile,
    changes: Changes = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check the fields here, without the service and its files.")
    ] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Check a job without starting it, and print its size: images, bytes, steps."""
    spec = _read(job_file, changes)
    if offline:
        validated = _validate_here(spec)
    else:
        with connected(url, api_key) as client:
            validated = client.jobs.validate(spec)
    if as_json:
        print_json(validated)
    else:
        messages.print(f"[green]{escape(job_file)} is a valid job[/]")
        show(estimate_table(validated))


def submit(
    job_file: JobFile,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    changes: Changes = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Start a job."""
    spec = _read(job_file, changes)
    with connected(url, api_key) as client:
        job = client.jobs.create(spec)
    if follow:
        messages.print(f"submitted {job.id}")
        _follow(job.id, url, api_key, as_json)
    elif as_json:
        print_json(job)
    else:
        output.print(job.id)
        messages.print(f"[dim]follow it with: dfkd watch {job.id}, or at {dashboard_page(url, job.id)}[/]")


def watch(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Follow a job to its end. Ctrl-C stops watching, and the job continues."""
    _follow(job_id, url, api_key, as_json)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job has ended.")] = False,
    after: Annotated[str | None, typer.Option(help="Only what comes after the event of this id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show the events of a job."""
    with connected(url, api_key) as client:
        job_id = find_job(client, job_id)
        try:
            for event in client.jobs.events(job_id, after=after, follow=follow):
                if as_json:
                    print_json(event)
                else:
                    output.print(event_line(event))
        except KeyboardInterrupt:
            _say_that_it_goes_on(job_id)


def jobs(
    status: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name contains this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs to show.")] = 20,
    after: Annotated[str | None, typer.Option(help="Only jobs older than that of this id.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    with connected(url, api_key) as client:
        page = client.jobs.list(status=status, name=name, limit=limit, after=after)
    if as_json:
        print_json(page)
    elif page.data:
        show(jobs_table(page.data))
        if page.has_more:
            messages.print(f"[dim]there are more; show them with --after {page.data[-1].id}[/]")
    else:
        messages.print("no jobs")


def job(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show one job."""
    with connected(url, api_key) as client:
        found = client.jobs.get(find_job(client, job_id))
    if as_json:
        print_json(found)
    else:
        show(job_table(found))


def cancel(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Cancel a job. What it has made stays."""
    with connected(url, api_key) as client:
        cancelled = client.jobs.cancel(find_job(client, job_id))
    if as_json:
        print_json(cancelled)
    else:
        output.print(f"{cancelled.id} {cancelled.state}")


def retry(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Resume a job that failed or was cancelled from its last checkpoints."""
    with connected(url, api_key) as client:
        job_id = find_job(client, job_id)
        retried = client.jobs.retry(job_id)
    if follow:
        _follow(job_id, url, api_key, as_json)
    elif as_json:
        print_json(retried)
    else:
        output.print(f"{retried.id} {retried.state}")


def delete(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Remove a finished job with its shards, its student and its history. Asks first on a terminal."""
    with connected(url, api_key) as client:
        job_id = find_job(client, job_id)
        if sys.stdin.isatty() and not (yes or as_json):
            found = client.jobs.get(job_id)
            named = f" ({found.name})" if found.name else ""
            if not typer.confirm(f"Delete {job_id}{named} with everything that it has made?", err=True):
                raise typer.Exit(ExitCode.INTERRUPTED)
        client.jobs.delete(job_id)
    if as_json:
        print_json({"id": job_id, "deleted": True})
    else:
        output.print(f"{job_id} deleted")


def fetch(
    job_id: JobId,
    to: Annotated[Path | None, typer.Option(help="Folder to download into (default: ./ID).")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Download what a job has made: shards, each checked, student, index, dataset card and picture grid."""
    with connected(url, api_key) as client:
        job_id = find_job(client, job_id)
        folder = to or Path(job_id)
        fetched = client.jobs.download_dataset(job_id, folder, say=lambda text: messages.print(escape(text)))
    if as_json:
        print_json({"folder": str(folder), "files": list(fetched)})
    else:
        output.print(f"{len(fetched)} files in {escape(str(folder))}")


def _read(job_file: str, changes: list[str] | None) -> dict[str, Any]:
    try:
        return load_job_file(job_file, changes or ())
    except InvalidJobFile as error:
        fail(str(error), ExitCode.USAGE)


def _validate_here(spec: dict[str, Any]) -> ValidatedJob:
    from shared.specs.estimates import estimate

    try:
        job = check_job(spec)
    except RefusedJob as error:
        show_field_errors("this is not a valid job", error.errors)
        raise typer.Exit(ExitCode.USAGE) from None
    return ValidatedJob(spec=job.model_dump(mode="json"), estimate=estimate(job))


def _follow(job_id: str, url: str, api_key: str | None, as_json: bool) -> None:
    """Watches a job and ends the command with its outcome."""
    with connected(url, api_key) as client:
        job_id = find_job(client, job_id)
        try:
            messages.print(f"[dim]the dashboard shows it at {dashboard_page(url, job_id)}[/]")
            ended = client.jobs.wait(job_id, progress=display_for(messages))
        except KeyboardInterrupt:
            _say_that_it_goes_on(job_id)
        except ServerUnreachable as error:
            fail(f"{error}; {job_id} may still be running, follow it with: dfkd watch {job_id}", ExitCode.UNREACHABLE)
    if as_json:
        print_json(ended)
    else:
        output.print(summary(ended))
    if ended.state is not State.SUCCEEDED:
        raise typer.Exit(ExitCode.FAILED)


def _say_that_it_goes_on(job_id: str) -> None:
    messages.print(f"stopped watching; {job_id} continues. Follow it with: dfkd watch {job_id}")
    raise typer.Exit(ExitCode.INTERRUPTED) from None
