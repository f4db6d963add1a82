"""`dfkd run`: from a teacher's file to a fetched student in one command.

It describes the teacher as `dfkd init` does, uploads it, submits the job, follows it and downloads what it has made.
Where no service answers on this machine, one is started for as long as the command runs; its jobs stay, and `dfkd up`
resumes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from shared.jobs import State
from shared.tasks.descriptions import CLASSIFICATION
from synth_service.cli.job_file import InvalidJobFile, apply_changes
from synth_service.cli.job_writing import matches_attention, preset_for
from synth_service.cli.model_folders import find_teacher
from synth_service.cli.outcomes import ExitCode, connected, dashboard_page, fail, messages, output, print_json, show
from synth_service.cli.own_service import own_service
from synth_service.cli.running import read_settings, redis_folder
from synth_service.cli.tables import estimate_table, summary
from synth_service.cli.teacher_questions import Answers, Teacher, describe_teacher, tell_guesses
from synth_service.client import Client, ClientError, Job, ServerUnreachable
from synth_service.client.progress import display_for


def run_teacher(
    checkpoint: Path,
    given: Answers,
    *,
    ask: bool,
    changes: Sequence[str],
    to: Path | None,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Does all of it, and ends the command with 1 unless the job succeeds.

    Args:
        checkpoint: the teacher's weights, their folder, or their name on the hub.
        given: answers that are known.
        ask: ask for the others; if not, they are guessed, and the guesses are told.
        changes: of the job, as ``field=value``.
        to: folder to download into; None for one of the job's id.
        url, api_key: of the service.
        as_json: end with the job as one line of JSON on stdout.
    """
    files = find_teacher(checkpoint)
    teacher = describe_teacher(files.weights, given, ask=ask, beside=files.described)
    tell_guesses(teacher)
    spec = job_of(teacher, given.name or files.name)
    try:
        apply_changes(spec, changes)
    except InvalidJobFile as error:
        fail(str(error), ExitCode.USAGE)
    with _service(url, api_key) as client:
        job = _submitted(client, files.weights, spec)
        try:
            job = job.wait(progress=display_for(messages))
        except KeyboardInterrupt:
            messages.print(f"stopped watching; {job.id} continues. Follow it with: dfkd watch {job.id}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        folder = to or Path(job.id)
        fetched = job.download_dataset(folder)
    if as_json:
        print_json(job)
    else:
        output.print(summary(job).partition("; get it with")[0])
        output.print(f"{len(fetched)} files in {escape(str(folder))}")
    if job.state is not State.SUCCEEDED:
        raise typer.Exit(ExitCode.FAILED)


def job_of(teacher: Teacher, name: str) -> dict[str, Any]:
    """The job's fields; the checkpoint is filled in once it is uploaded."""
    described: dict[str, Any] = {"arch": teacher.arch, "num_classes": teacher.num_classes}
    if teacher.task != CLASSIFICATION.name:
        described["task"] = teacher.task
    if teacher.kwargs:
        described["kwargs"] = teacher.kwargs
    synthesis: dict[str, Any] = {"preset": preset_for(teacher)}
    if not teacher.has_batch_norm and not matches_attention(teacher):
        synthesis["bn"] = 0
    return {
        "name": name,
        "teacher": {**described, "input": teacher.input_fields()},
        "student": {"arch": teacher.student},
        "synthesis": synthesis,
    }


def _submitted(client: Client, checkpoint: Path, spec: dict[str, Any]) -> Job:
    """The job, once its teacher is uploaded and what it comes to is told."""
    messages.print(f"uploading {escape(checkpoint.name)} …")
    model = client.models.upload(checkpoint)
    spec["teacher"].setdefault("checkpoint", model.checkpoint)
    show(estimate_table(client.jobs.validate(spec)), messages)
    job = client.jobs.create(spec)
    messages.print(f"submitted {job.id}; the dashboard shows it at {dashboard_page(client.url, job.id)}")
    return job


@contextmanager
def _service(url: str, api_key: str | None) -> Iterator[Client]:
    """A client of the service at the address, or of one that is started where none answers on this machine."""
    port = _port_here(url)
    if port is not None and not _answers(url, api_key):
        with _started(url, port) as client:
            yield client
    else:
        with connected(url, api_key) as client:
            yield client


def _port_here(url: str) -> int | None:
    """The port of an address on this machine; None for any other."""
    parts = urlsplit(url)
    return parts.port or 80 if parts.hostname in ("127.0.0.1", "localhost", "::1") else None


def _answers(url: str, api_key: str | None) -> bool:
    try:
        with Client(url, api_key, retries=0) as probe:
            probe.check_ready()
    except ServerUnreachable:
        return False
    except ClientError:
        pass  # whatever is wrong is told by the first request that counts
    return True


@contextmanager
def _started(url: str, port: int) -> Iterator[Client]:
    settings = read_settings()
    storage = settings.storage if "://" in settings.storage else str(Path(settings.storage).expanduser().absolute())
    folder = redis_folder(storage, settings.state_folder)
    log_path = folder.parent / "run.log"
    messages.print(f"no service runs at {url}; starting one for this run, with its files in {escape(storage)}")
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = log_path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        fail(f"{error.filename or log_path}: {error.strerror or error}; choose another folder with DFKD_STORAGE")
    with (
        log,
        own_service(
            storage=storage,
            redis_url=settings.redis_url,
            redis_folder=folder,
            port=port,
            log=log,
            when_interrupted="everything is stopped; `dfkd up` resumes the job",
        ) as client,
    ):
        yield client
