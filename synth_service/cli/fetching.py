"""Downloading what a job has made into the layout that its output folder has in the storage.

Shards, student and picture grid come as they are. Index, dataset card and metrics are written here from
what the API tells, by the functions with which the workers wrote theirs, so they fit the shards that were
fetched even while the job makes more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.client import ApiError, Client
from shared.dataset_folder import write_dataset_card, write_index
from shared.jobs import JobRecord
from shared.manifests import ShardManifest
from shared.storage import Storage


def fetch_job(client: Client, job_id: str, folder: Path, *, say: Callable[[str], None]) -> list[str]:
    """Downloads everything that there is by now; shards that are there and whole are not sent again.

    Returns:
        Names of the files, relative to the folder.

    Raises:
        DamagedDownload: a shard is not what its manifest says.
        ApiError, ServerUnreachable: as every method of the client.
        OSError: a file cannot be written.
    """
    job = client.job(job_id)
    if not job.state.is_final:
        say(f"{job_id} is {job.state}: this is what it has made so far")
    manifests = client.shards(job_id)
    fetched = _fetch_shards(client, manifests, folder / "shards", say)
    if _is_there(lambda: client.download_student(job_id, folder / "student.safetensors")):
        fetched.append("student.safetensors")
    if manifests:
        has_grid = _is_there(lambda: client.download_grid(job_id, folder / "grid.png"))
        fetched += ["grid.png"] if has_grid else []
        fetched += _describe(job, manifests, folder, "grid.png" if has_grid else None)
    if job.state.is_final:
        metrics = {"job": job_id, "result": job.result, "series": client.metrics(job_id)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        fetched.append("metrics.json")
    return fetched


def _fetch_shards(
    client: Client, manifests: Sequence[ShardManifest], folder: Path, say: Callable[[str], None]
) -> list[str]:
    fetched: list[str] = []
    for number, manifest in enumerate(manifests, start=1):
        if not _is_whole(folder / manifest.name, manifest):
            client.download_shard(manifest, folder / manifest.name)
        (folder / manifest.sidecar_name).write_text(manifest.model_dump_json(), encoding="utf-8")
        fetched += [f"{folder.name}/{manifest.name}", f"{folder.name}/{manifest.sidecar_name}"]
        if number % 100 == 0:
            say(f"{number:,} of {len(manifests):,} shards")
    return fetched


def _describe(job: JobRecord, manifests: Sequence[ShardManifest], folder: Path, grid: str | None) -> list[str]:
    """Writes shard index and dataset card."""
    folder = folder.absolute()
    spec = job.parsed_spec()
    storage = Storage(str(folder.parent))
    names = [
        write_index(storage, folder.name, manifests, name=spec.name or job.id),
        write_dataset_card(storage, folder.name, manifests, spec, grid=grid),
    ]
    return [Path(name).name for name in names]


def _is_whole(path: Path, manifest: ShardManifest) -> bool:
    if not path.is_file() or path.stat().st_size != manifest.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == manifest.sha256


def _is_there(download: Callable[[], None]) -> bool:
    """Whether the download came; False when the job has no such file (yet)."""
    try:
        download()
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
