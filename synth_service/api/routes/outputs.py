"""What a job has made: shards, the student, the picture grid."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from shared.jobs import JobRecord, State
from shared.shards.manifest import ShardManifest
from shared.specs import ExportFormat
from shared.storage import PathOutsideStorage, job_paths
from synth_service.api import files
from synth_service.api.dependencies import AfterEntry, BrokerInUse, ExistingJob, PageLimit, StorageInUse
from synth_service.api.problems import Problem, documented
from synth_service.api.responses import NOT_MODIFIED, PARTIAL, binary
from synth_service.wire import Shard, ShardPage

router = APIRouter(tags=["outputs"])

NOT_THERE = (FileNotFoundError, PathOutsideStorage)
"""A link that leads out of the storage is as good as no file."""


@router.get("/jobs/{job_id}/shards", response_model=ShardPage, responses=documented(404, 422), summary="List shards")
def list_shards(job: ExistingJob, broker: BrokerInUse, after: AfterEntry = None, limit: PageLimit = 100) -> ShardPage:
    """Manifests of the sealed shards, also while the job makes more."""
    found = broker.shards.read(job.id, after or "0", count=limit + 1, block_seconds=0)
    data = [Shard(id=shard.position, **shard.manifest.model_dump()) for shard in found[:limit]]
    return ShardPage(data=data, has_more=len(found) > limit)


@router.get(
    "/jobs/{job_id}/shards/{name}",
    response_class=Response,
    responses={
        **binary("application/x-tar", "A WebDataset tar. Its `ETag` is the sha256 of its manifest."),
        **PARTIAL,
        **NOT_MODIFIED,
        **documented(400, 404, 416, 422),
    },
    summary="Download a shard",
)
def get_shard(
    job: ExistingJob,
    name: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,90}\.tar$", description="`name` of a manifest.")],
    request: Request,
    storage: StorageInUse,
) -> Response:
    """The tar of a shard. `Range` works where the storage is a local folder."""
    shard = f"{job_paths.shards(job.id)}/{name}"
    try:
        # The sidecar beside the file, and not the job's stream: one small read however many shards there are.
        manifest = ShardManifest.model_validate_json(storage.read_bytes(f"{shard.removesuffix('.tar')}.json"))
        return files.send(storage, shard, request, media_type="application/x-tar", etag=manifest.sha256)
    except NOT_THERE:
        detail = f"{job.id} has no shard {name}."
        raise Problem(404, "shard_not_found", detail, hint=f"GET /jobs/{job.id}/shards lists them.") from None


@router.get(
    "/jobs/{job_id}/student",
    response_class=Response,
    responses={
        **binary("application/octet-stream", "The weights as safetensors, or the student in another format."),
        **PARTIAL,
        **NOT_MODIFIED,
        **documented(400, 404, 416, 422),
    },
    summary="Download the student",
)
def get_student(
    job: ExistingJob,
    request: Request,
    storage: StorageInUse,
    format: Annotated[
        Literal["safetensors"] | ExportFormat,
        Query(description="`safetensors`, or a format that the job was asked to export."),
    ] = "safetensors",
) -> Response:
    """The trained student, once distillation is done."""
    name = job_paths.student(job.id) if format == "safetensors" else job_paths.exported_student(job.id, format)
    try:
        return files.send(storage, name, request, media_type="application/octet-stream")
    except NOT_THERE:
        if format != "safetensors" and job.state is State.SUCCEEDED and job.stages.distillation is not None:
            raise _not_exported(job, format) from None
        raise _no_student(job) from None


def _not_exported(job: JobRecord, format: ExportFormat) -> Problem:
    failed = (job.result or {}).get("exports_failed")
    reason = failed.get(format) if isinstance(failed, dict) else None
    if reason is not None:
        hint = "The weights are there: GET /jobs/{id}/student."
        return Problem(404, "format_not_exported", f"The student cannot be written as {format}: {reason}", hint=hint)
    hint = f'Ask for it in a job with `"distillation": {{"export": ["{format}"]}}`, or export it from the weights.'
    return Problem(404, "format_not_exported", f"{job.id} was not asked to export {format}.", hint=hint)


def _no_student(job: JobRecord) -> Problem:
    if job.stages.distillation is None:
        return Problem(404, "job_without_student", f"{job.id} only makes a dataset (`distillation` is null).")
    if job.state.is_final:
        return Problem(404, "no_student", f"{job.id} has {job.state} and left no student.")
    detail = f"{job.id} is {job.state}; its student is there once distillation is done."
    return Problem(404, "student_not_ready", detail, hint="Poll the job until `state` is `succeeded`.")


@router.get(
    "/jobs/{job_id}/grid.png",
    response_class=Response,
    responses={
        **binary("image/png", "A grid of synthetic images."),
        **PARTIAL,
        **NOT_MODIFIED,
        **documented(400, 404, 416, 422),
    },
    summary="Picture grid",
)
def get_grid(job: ExistingJob, request: Request, storage: StorageInUse) -> Response:
    """A picture of some synthetic images of each class."""
    try:
        return files.send(storage, job_paths.grid(job.id), request, media_type="image/png")
    except NOT_THERE:
        detail = f"{job.id} has no picture grid (yet)."
        raise Problem(404, "grid_not_found", detail, hint="It is drawn when the dataset is complete.") from None
