"""What a job has made, on the Hugging Face hub: the dataset as a dataset repository, the student as a model repository.

Everything is fetched into a temporary folder first, checked as every download is, and then goes up as one commit.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from shared.jobs import JobRecord, State
from shared.specs import ExportFormat
from shared.storage import job_paths
from synth_service.client.connection import Connection
from synth_service.client.downloads import download
from synth_service.client.errors import ApiError, HubError
from synth_service.client.hub_repository import HubRepository, Pushed
from synth_service.client.outputs import student_request

CARD: Final = "README.md"
STUDENT: Final = "student.safetensors"
NOT_FOUND: Final = 404

_DATASET: Final = re.compile(r"shards/[^/]+\.(tar|json)|index\.json|grid\.png|README\.md")
"""Files of a dataset's repository that are of a push."""
_SHOWN: Final = re.compile(r"shards/[^/]+\.tar|index\.json|grid\.png|README\.md")
"""Of a job's folder, what goes up: a manifest has nothing that the index lacks and a reader of the shards needs."""
_STUDENT: Final = re.compile(rf"{'|'.join(map(re.escape, [STUDENT, CARD, *job_paths.EXPORT_NAMES.values()]))}")


async def push_dataset(
    connection: Connection, job: JobRecord, repository: HubRepository, message: str, say: Callable[[str], None]
) -> Pushed:
    """Pushes shards, index, card and picture grid to a repository that is prepared.

    Raises:
        HubError, ApiError, ServerUnreachable, DamagedDownload, OSError: as ``AsyncJobs.push_to_hub``.
    """
    from synth_service.client.datasets import download_dataset  # brings storage and dataset card along

    with _fetching(job, "dataset", say) as folder:
        fetched = await download_dataset(connection, job.id, folder, say)
        files = [folder / name for name in fetched if _SHOWN.fullmatch(name)]
        return await _upload(connection, repository, folder, files, _DATASET, message, say)


async def push_student(
    connection: Connection, job: JobRecord, repository: HubRepository, message: str, say: Callable[[str], None]
) -> Pushed:
    """Pushes the student's weights, its exported forms and its card to a repository that is prepared.

    Raises:
        HubError, ApiError, ServerUnreachable, DamagedDownload, OSError: as ``AsyncJobs.push_to_hub``.
    """
    from shared.cards.student_card import student_card

    with _fetching(job, "student", say) as folder:
        weights, card = folder / STUDENT, folder / CARD
        sha256 = (job.result or {}).get("student_sha256")
        await download(connection, student_request(job.id), weights, sha256=sha256 if isinstance(sha256, str) else None)
        exports = await _fetch_exports(connection, job, folder)
        card.write_text(student_card(job, list(exports)), encoding="utf-8")
        files = [weights, card, *exports.values()]
        return await _upload(connection, repository, folder, files, _STUDENT, message, say)


async def _fetch_exports(connection: Connection, job: JobRecord, folder: Path) -> dict[ExportFormat, Path]:
    """The student in every format in which it was exported. Not every network can be written in each."""
    distillation = job.parsed_spec().distillation
    exports: dict[ExportFormat, Path] = {}
    for format in dict.fromkeys(distillation.export if distillation else ()):
        target = folder / job_paths.EXPORT_NAMES[format]
        try:
            await download(connection, student_request(job.id, format), target)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            continue
        exports[format] = target
    return exports


@contextmanager
def _fetching(job: JobRecord, what: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder for what is fetched and goes up, gone in the end."""
    with tempfile.TemporaryDirectory(prefix="dfkd-push-") as temporary:
        say(f"fetching the {what} of {job.id}")
        yield Path(temporary)


def check_has_dataset(job: JobRecord) -> None:
    """Raises HubError, with the remedy, unless the job's dataset is complete and will not change."""
    synthesis = job.stages.synthesis
    if synthesis is None:
        raise HubError(
            f"{job.id} distils from shards that were there, and has made no dataset; push the job that made them, or "
            "this one's student (--student, in Python student=True)",
            is_usage=True,
        )
    _check_ended(job)
    if synthesis.state is not State.SUCCEEDED:
        raise HubError(
            f"{job.id} has {job.state} before its dataset was complete; resume it with `dfkd retry {job.id}`",
            is_usage=True,
        )


def check_has_student(job: JobRecord) -> None:
    """Raises HubError, with the remedy, unless the job has trained a student."""
    if job.stages.distillation is None:
        raise HubError(
            f"{job.id} only makes a dataset (`distillation` is null), so it has no student; push its dataset "
            "(without --student), or train one with `shards` of it",
            is_usage=True,
        )
    _check_ended(job)
    if job.state is not State.SUCCEEDED:
        raise HubError(
            f"{job.id} has {job.state} and left no student; resume it with `dfkd retry {job.id}`", is_usage=True
        )


def _check_ended(job: JobRecord) -> None:
    if not job.state.is_final:
        raise HubError(
            f"{job.id} is {job.state}; push it when it has ended: `dfkd watch {job.id}` follows it", is_usage=True
        )


async def _upload(
    connection: Connection,
    repository: HubRepository,
    folder: Path,
    files: Sequence[Path],
    replaces: re.Pattern[str],
    message: str,
    say: Callable[[str], None],
) -> Pushed:
    """One commit of files, under their names in the folder."""
    size = sum(path.stat().st_size for path in files)
    say(f"uploading {len(files):,} files ({size:,} bytes) to {repository.name}")
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return await connection.run_blocking(partial(repository.commit, named, replaces, message))
