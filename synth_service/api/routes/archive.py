"""The whole dataset folder of an ended job as one tar, made while it is sent.

Nothing is copied or packed: a header for each file and then its bytes, a megabyte at a time, so memory is the same
for any size. All sizes are known beforehand, hence the length of the archive too, and a client sees at the end
whether it has everything. Same files, same bytes: times, owners and order are fixed.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.storage import Storage, job_paths
from synth_service.api import files
from synth_service.api.dependencies import BrokerInUse, ExistingJob, StorageInUse
from synth_service.api.problems import Problem, documented
from synth_service.api.responses import NOT_MODIFIED, binary

router = APIRouter(tags=["outputs"])

END_BYTES = 2 * tarfile.BLOCKSIZE


class Member(NamedTuple):
    """One file of the archive."""

    name: str
    """In the storage."""
    path: str
    """In the archive."""
    bytes: int
    mark: str
    """Differs when the content does."""

    @property
    def padding(self) -> int:
        """Bytes up to the next block of the tar."""
        return -self.bytes % tarfile.BLOCKSIZE


@router.get(
    "/jobs/{job_id}/archive",
    response_class=Response,
    responses={
        **binary("application/x-tar", "Shards with their manifests, index, card, picture, metrics and student."),
        **NOT_MODIFIED,
        **documented(404, 409, 422),
    },
    summary="Download everything",
)
def get_archive(job: ExistingJob, request: Request, broker: BrokerInUse, storage: StorageInUse) -> Response:
    """The output folder of a job that has ended as an uncompressed tar; its top folder has the job's id."""
    if not job.state.is_final:
        hint = "Poll the job until it has ended, or download its shards one by one as they come."
        raise Problem(409, "job_unfinished", f"{job.id} has not ended yet.", hint=hint)
    members = _members(job, broker, storage)
    if not members:
        raise Problem(404, "archive_empty", f"{job.id} has {job.state} and left no files.")
    described = "\n".join(f"{member.path} {member.bytes} {member.mark}" for member in members)
    headers = {
        "ETag": f'"{hashlib.sha256(f"{job.finished_at} {described}".encode()).hexdigest()[:32]}"',
        "Cache-Control": "private, no-cache",
    }
    if files.matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    time = int(job.finished_at or 0)
    length = sum(len(_header(member, time)) + member.bytes + member.padding for member in members) + END_BYTES
    headers |= {
        "Content-Length": str(length),
        "Content-Disposition": f'attachment; filename="{job.id}.tar"',
    }
    return StreamingResponse(_tar(storage, members, time), headers=headers, media_type="application/x-tar")


def _members(job: JobRecord, broker: Broker, storage: Storage) -> list[Member]:
    """Shards that count, and whatever else lies in the folder for people: no working files, no previews."""
    folder = job_paths.folder(job.id)
    shards = f"{job_paths.shards(job.id)}/"
    manifests = {manifest.name: manifest for manifest in broker.shards.manifests(job.id)}
    sidecars = {manifest.sidecar_name: manifest for manifest in manifests.values()}
    left_out = (f"{job_paths.work(job.id)}/", f"{job_paths.previews(job.id)}/")
    found = []
    for name, size in storage.sizes(folder).items():
        path = f"{job.id}/{name.removeprefix(folder).lstrip('/')}"
        if name.startswith(shards):
            file = name.removeprefix(shards)
            manifest = manifests.get(file) or sidecars.get(file)
            if manifest is not None:
                found.append(Member(name, path, size, manifest.sha256))
        elif not name.startswith(left_out):
            found.append(Member(name, path, size, ""))
    return found


def _header(member: Member, time: int) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.size, info.mtime, info.mode = member.bytes, time, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _tar(storage: Storage, members: list[Member], time: int) -> Iterator[bytes]:
    """The archive in pieces. A file that is not as long as it was ends the connection: nobody takes it for whole."""
    for member in members:
        yield _header(member, time)
        left = member.bytes
        with storage.open(member.name) as file:
            while left:
                chunk = file.read(min(files.CHUNK_BYTES, left))
                if not chunk:
                    raise EOFError(f"{member.name} has become shorter")
                left -= len(chunk)
                yield chunk
        yield bytes(member.padding)
    yield bytes(END_BYTES)
