"""Commands about the service and what is around it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from synth_service.cli.options import (
    ApiKey,
    Arch,
    Changes,
    Channels,
    CheckpointFile,
    JobName,
    Json,
    Normalization,
    NumClasses,
    Size,
    Storage,
    StudentArch,
    Url,
)
from synth_service.cli.outcomes import (
    ExitCode,
    connected,
    messages,
    output,
    print_json,
    show,
    show_listing,
    show_removal,
)
from synth_service.cli.tables import models_table, workers_table
from synth_service.client.connection import DEFAULT_URL
from synth_service.digits_example import ExampleName


def up(
    host: Annotated[str | None, typer.Option(help="Address of the API (default: 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Its port; 0 picks a free one (default: 8000).")
    ] = None,
    synth_workers: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Processes that make images (default: 1, or one for each GPU but one)."),
    ] = None,
    distillers: Annotated[int, typer.Option(min=0, max=256, help="Processes that train students.")] = 1,
    devices: Annotated[
        str | None, typer.Option(metavar="0,1,…|all", help="GPUs for the workers, each its own while there are enough.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Run the whole service here until Ctrl-C.

    Without REDIS_URL it starts a server of its own. What is not given comes from DFKD_HOST, DFKD_PORT and
    DFKD_STORAGE.
    """
    from synth_service.cli.running import run_service

    run_service(
        host=host, port=port, synth_workers=synth_workers, distillers=distillers, devices=devices, storage=storage
    )


def demo(
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the job (default: that of its file).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON on stdout.")] = False,
    storage: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("dfkd-demo"),
    example: Annotated[
        ExampleName, typer.Option(help="`digits` classifies images, `scenes` labels every pixel.")
    ] = "digits",
) -> None:
    """Distil a network that reads digits, without a digit: the whole service, started, used and stopped."""
    from synth_service.cli.demo import run_demo

    run_demo(storage=storage, seed=seed, as_json=as_json, name=example)


def init(
    checkpoint: CheckpointFile,
    to: Annotated[Path, typer.Option("--to", "-o", help="Job file to write.")] = Path("job.yaml"),
    arch: Arch = None,
    num_classes: NumClasses = None,
    channels: Channels = None,
    size: Size = None,
    normalization: Normalization = None,
    normalization_by_its_old_name: Annotated[
        str | None, typer.Option("--normalisation", hidden=True, help="The same; the flag's name until 0.1.")
    ] = None,
    student: StudentArch = None,
    name: JobName = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the job file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a job file for your own network. Ask for what its checkpoint does not tell."""
    from synth_service.cli.job_writing import write_job_file
    from synth_service.cli.teacher_questions import Answers

    given = Answers(arch, num_classes, channels, size, normalization or normalization_by_its_old_name, student, name)
    written = write_job_file(checkpoint, to, given, ask=not (yes or as_json), force=force)
    if as_json:
        print_json({"file": str(to), "spec": written})
    else:
        messages.print(f"wrote {escape(str(to))}; next: dfkd validate {escape(str(to))}")


def run(
    checkpoint: CheckpointFile,
    student: StudentArch = None,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="Folder to download into (default: ./ID).")] = None,
    arch: Arch = None,
    num_classes: NumClasses = None,
    channels: Channels = None,
    size: Size = None,
    normalization: Normalization = None,
    name: JobName = None,
    changes: Changes = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask what the file does not tell, and do not guess.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Distil a teacher in one go: upload, submit, follow and fetch. Starts a service for that where none runs."""
    from synth_service.cli.teacher_questions import Answers
    from synth_service.cli.whole_run import run_teacher

    run_teacher(
        checkpoint,
        Answers(arch, num_classes, channels, size, normalization, student, name),
        ask=ask and not as_json,
        changes=changes or (),
        to=to,
        url=url,
        api_key=api_key,
        as_json=as_json,
    )


def doctor(
    as_json: Json = False,
    storage: Storage = None,
    url: Annotated[
        str | None, typer.Option("--url", envvar="DFKD_URL", help=f"Address of the service (default: {DEFAULT_URL}).")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Check everything that the service needs here; exit code 1 if something is broken."""
    from synth_service.cli.doctor import Status, examine, findings_table

    findings = examine(url=url, api_key=api_key, storage=storage)
    is_broken = any(finding.status is Status.BROKEN for finding in findings)
    if as_json:
        print_json({"ok": not is_broken, "checks": [finding.model_dump(mode="json") for finding in findings]})
    else:
        show(findings_table(findings))
    if is_broken:
        raise typer.Exit(ExitCode.FAILED)


def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights: safetensors, or a torch file.")],
    name: Annotated[str | None, typer.Option(help="File name to show (default: that of the file).")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a checkpoint, and print the name that a job uses for it."""
    with connected(url, api_key) as client:
        model = client.models.upload(file, name=name)
    if as_json:
        print_json(model)
    else:
        output.print(model.checkpoint)
        known = f" of {' or '.join(model.architectures)}" if model.architectures else ""
        messages.print(f"[dim]{model.bytes:,} bytes{known}; in the job file: checkpoint: {escape(model.checkpoint)}[/]")


def models(
    delete: Annotated[str | None, typer.Option(metavar="ID", help="Remove this one instead.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List uploaded checkpoints, newest first."""
    with connected(url, api_key) as client:
        if delete is not None:
            model_id = delete.removeprefix("models/")
            client.models.delete(model_id)
            show_removal(model_id, "deleted", {"id": model_id}, as_json=as_json)
            return
        found = client.models.list()
    show_listing(found, models_table, "no models", as_json=as_json)


def workers(as_json: Json = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List the workers that reported within the last minute."""
    with connected(url, api_key) as client:
        found = client.workers()
    show_listing(found, workers_table, "no workers; `dfkd up` starts some", as_json=as_json)
