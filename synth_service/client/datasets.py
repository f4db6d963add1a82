"""Downloading what a job has made into the layout that its output folder has in the storage.

A finished job comes as one archive, taken apart on its way. What that did not bring (the job is not finished, the
connection was cut, part of it is here from before) comes file by file. Either way every shard is held against its
manifest. Index, dataset card and metrics that the service has not written yet are made here, by the functions with
which the workers write theirs, so they fit the shards that were fetched.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from shared.jobs import JobRecord
from shared.shards.dataset_folder import CARD_NAME, INDEX_NAME, write_dataset_card, write_index
from shared.shards.manifest import ShardManifest
from shared.storage import PathOutsideStorage, Storage, check_name, job_paths
from shared.storage.digests import file_sha256
from synth_service.client.connection import Connection, Request, path_of
from synth_service.client.downloads import NewFile, download
from synth_service.client.errors import ApiError, DamagedDownload, ServerUnreachable
from synth_service.client.outputs import download_shard, list_metrics, list_shards
from synth_service.client.tar_stream import End, Start, TarReader

STUDENT: Final = "student.safetensors"
GRID: Final = "grid.png"
METRICS: Final = "metrics.json"
NO_ARCHIVE: Final = (404, 405, 409)


async def download_dataset(
    connection: Connection, job_id: str, folder: Path, say: Callable[[str], None] | None
) -> list[str]:
    """Downloads everything that there is by now; shards that are there and whole are not sent again.

    Returns:
        Names of the files, relative to the folder.

    Raises:
        DamagedDownload: a shard is not what its manifest says.
        ApiError, ServerUnreachable: as ``Connection.send``.
        OSError: a file cannot be written.
    """
    job = await connection.ask(Request("GET", path_of("jobs", job_id)), JobRecord.model_validate)
    if say and not job.state.is_final:
        say(f"{job_id} is {job.state}: this is what it has made so far")
    manifests = await list_shards(connection, job_id)
    shards = folder / "shards"
    missing = [manifest for manifest in manifests if not _is_whole(shards / manifest.name, manifest)]
    fetched: set[str] = set()
    if job.state.is_final and missing and len(missing) == len(manifests):
        fetched |= await _unpack(connection, job_id, folder, manifests)
        missing = [manifest for manifest in missing if f"shards/{manifest.name}" not in fetched]
    for number, manifest in enumerate(missing, start=1):
        await download_shard(connection, manifest, shards / manifest.name)
        if say and number % 100 == 0:
            say(f"{number:,} of {len(missing):,} shards")
    for manifest in manifests:
        (shards / manifest.sidecar_name).write_text(manifest.model_dump_json(), encoding="utf-8")
        fetched |= {f"shards/{manifest.name}", f"shards/{manifest.sidecar_name}"}
    fetched |= await _fetch_extras(connection, job, folder, fetched, has_images=bool(manifests))
    if manifests and not {INDEX_NAME, CARD_NAME} <= fetched:
        fetched |= _describe(job, manifests, folder, GRID if GRID in fetched else None)
    return sorted(fetched)


async def _unpack(connection: Connection, job_id: str, folder: Path, manifests: Sequence[ShardManifest]) -> set[str]:
    """Takes the archive apart into the folder, as far as it comes; the names of the files that are whole."""
    announced = {f"shards/{manifest.name}": manifest.sha256 for manifest in manifests}
    unpacked: set[str] = set()
    name, file = "", None
    try:
        async for piece in _archive(connection, job_id):
            if isinstance(piece, Start):
                name = _local_name(piece.name, job_id)
                is_wanted = not name.startswith("shards/") or name in announced
                file = NewFile(folder / name) if is_wanted else None
            elif file is not None and isinstance(piece, End):
                file.commit(announced.get(name))
                unpacked.add(name)
            elif file is not None and isinstance(piece, bytes):
                file.write(piece)
    except (ServerUnreachable, DamagedDownload):
        pass  # the rest comes file by file, and what is damaged is named there
    except ApiError as error:
        if error.status not in NO_ARCHIVE:
            raise
    finally:
        if file is not None:
            file.discard()
    return unpacked


async def _archive(connection: Connection, job_id: str) -> AsyncGenerator[Start | bytes | End, None]:
    reader = TarReader()
    async with connection.stream(Request("GET", path_of("jobs", job_id, "archive"))) as answer:
        async for chunk in connection.chunks(answer):
            for piece in reader.feed(chunk):
                yield piece
    reader.close()


def _local_name(name: str, job_id: str) -> str:
    """The name of a member below the folder that it is unpacked into."""
    try:
        return check_name(name.removeprefix("./").removeprefix(f"{job_id}/"))
    except PathOutsideStorage as error:
        raise DamagedDownload(f"the archive would write elsewhere: {error}") from None


async def _fetch_extras(
    connection: Connection, job: JobRecord, folder: Path, have: set[str], *, has_images: bool
) -> set[str]:
    """What there is beside the shards and did not come with the archive."""
    fetched = set()
    if STUDENT not in have and await _download_if_there(connection, job.id, "student", folder / STUDENT):
        fetched.add(STUDENT)
    distillation = job.parsed_spec().distillation
    for format in distillation.export if distillation else ():
        name = job_paths.EXPORT_NAMES[format]
        if name not in have and await _download_if_there(
            connection, job.id, "student", folder / name, params={"format": format}
        ):
            fetched.add(name)
    if has_images and GRID not in have and await _download_if_there(connection, job.id, GRID, folder / GRID):
        fetched.add(GRID)
    if job.state.is_final and METRICS not in have:
        rows = [row.model_dump() for row in await list_metrics(connection, job.id)]
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"job": job.id, "result": job.result, "series": rows}, indent=1)
        (folder / METRICS).write_text(text, encoding="utf-8")
        fetched.add(METRICS)
    return fetched


async def _download_if_there(
    connection: Connection, job_id: str, what: str, target: Path, params: Mapping[str, str] | None = None
) -> bool:
    """Whether the download came; False when the job has no such file (yet)."""
    try:
        await download(connection, Request("GET", path_of("jobs", job_id, what), params=params or {}), target)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


def _describe(job: JobRecord, manifests: Sequence[ShardManifest], folder: Path, grid: str | None) -> set[str]:
    """Writes shard index and dataset card."""
    folder = folder.absolute()
    spec = job.parsed_spec()
    storage = Storage(str(folder.parent))
    names = [
        write_index(storage, folder.name, manifests, name=spec.name or job.id),
        write_dataset_card(storage, folder.name, manifests, spec, grid=grid),
    ]
    return {Path(name).name for name in names}


def _is_whole(path: Path, manifest: ShardManifest) -> bool:
    if not path.is_file() or path.stat().st_size != manifest.bytes:
        return False
    return file_sha256(path) == manifest.sha256
