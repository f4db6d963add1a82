"""A picture of the newest images of a job, while it runs and after."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from shared.jobs import JobRecord
from shared.shards.previews import Strip, decode_strip, draw_grid, merged
from shared.storage import Storage, job_paths
from synth_service.api import files
from synth_service.api.dependencies import ExistingJob, StorageInUse
from synth_service.api.problems import Problem, documented
from synth_service.api.responses import NOT_MODIFIED, binary

router = APIRouter(tags=["outputs"])

COLUMNS = 10
TILES = 100
STRIPS_READ = 8
"""Of a job of more partitions, those that have made most."""


@router.get(
    "/jobs/{job_id}/preview.png",
    response_class=Response,
    responses={
        **binary("image/png", "The newest images, the newest first."),
        **NOT_MODIFIED,
        **documented(404, 422),
    },
    summary="Picture of the newest images",
)
def get_preview(
    job: ExistingJob,
    request: Request,
    storage: StorageInUse,
    target: Annotated[
        int | None, Query(alias="class", ge=0, le=100_000, description="Only images of this target class.")
    ] = None,
) -> Response:
    """A grid of small images, drawn anew as shards are sealed. Ask with `If-None-Match` to see whether it changed."""
    for _ in range(2):  # a strip that was replaced between listing and reading is gone
        names = _newest_strips(storage, job.id)
        etag = hashlib.sha256("\n".join([str(target), *names]).encode()).hexdigest()[:32]
        headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
        if names and files.matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        try:
            strips = [decode_strip(storage.read_bytes(name)) for name in names]
        except FileNotFoundError:
            continue
        return Response(_grid(job, strips, target), headers=headers, media_type="image/png")
    raise _not_ready(job, target)


def _newest_strips(storage: Storage, job_id: str) -> list[str]:
    """Of each partition the strip of the newest attempt; those of the most images first."""
    newest: dict[int, tuple[int, int, str]] = {}
    for name in storage.list(job_paths.previews(job_id)):
        partition, attempt, images = job_paths.parse_preview(name)
        newest[partition] = max(newest.get(partition, (-1, -1, "")), (attempt, images, name))
    ordered = sorted(newest.values(), key=lambda each: (-each[1], each[2]))
    return [name for *_, name in ordered[:STRIPS_READ]]


def _grid(job: JobRecord, strips: list[Strip], target: int | None) -> bytes:
    strip = merged(strips, target=target, most=TILES)
    if strip is None:
        raise _not_ready(job, target)
    return draw_grid(strip, columns=COLUMNS)


def _not_ready(job: JobRecord, target: int | None) -> Problem:
    if job.stages.synthesis is None:
        return Problem(404, "job_without_synthesis", f"{job.id} makes no images: it distils an existing dataset.")
    of_class = "" if target is None else f" of class {target}"
    hint = "It is there once the first shard is sealed." if not job.state.is_final else None
    return Problem(404, "preview_not_ready", f"{job.id} has no images{of_class} to show (yet).", hint=hint)
