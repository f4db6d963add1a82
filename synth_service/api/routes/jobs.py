"""Jobs over HTTP: create, list, poll, cancel, retry, delete."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from shared.broker import IdempotencyConflict, ModelMissing
from shared.jobs import JobRecord, State
from shared.specs import JobSpec
from shared.worker.retention import delete_job
from synth_service.api.admission import admit
from synth_service.api.dependencies import (
    JOB_ID_PATTERN,
    BrokerInUse,
    ExistingJob,
    IdentityInUse,
    OwnJobId,
    SettingsInUse,
    StorageInUse,
    no_such_job,
)
from synth_service.api.files import matches
from synth_service.api.json_requests import JsonRoute
from synth_service.api.problems import Problem, documented
from synth_service.api.security.auth import CallerInUse, allowance_of
from synth_service.api.security.ownership import check_own_files
from synth_service.wire import FieldError, JobPage

POLL_AFTER_SECONDS = 1

router = APIRouter(tags=["jobs"], route_class=JsonRoute)


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobRecord,
    responses=documented(413, 415, 422, 429),
    summary="Start a job",
)
def create_job(
    spec: JobSpec,
    response: Response,
    broker: BrokerInUse,
    storage: StorageInUse,
    identity: IdentityInUse,
    settings: SettingsInUse,
    caller: CallerInUse,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Of the client's choice. Sent again with the same body within a day, it gives the same job.",
        ),
    ] = None,
) -> JobRecord:
    """Queues a job and returns it at once. Poll `Location`, or listen to its events."""
    check_own_files(spec, broker, caller.owner_filter)
    spec = admit(spec, storage, settings, broker.models, caller.owner_filter)
    identity.establish(in_empty_root=True)
    try:
        job = broker.jobs.create(
            spec,
            owner=caller.name,
            max_unfinished=settings.max_queued_jobs,
            allowance=allowance_of(caller, settings),
            idempotency_key=idempotency_key,
        )
    except IdempotencyConflict:
        message = "was used for another job before; take a new key for a new job"
        error = FieldError(field="Idempotency-Key", message=message)
        raise Problem(422, "idempotency_key_reused", f"Idempotency-Key: {message}.", errors=[error]) from None
    except ModelMissing:
        raise Problem(422, "model_not_found", "A model that the job refers to was deleted this very moment.") from None
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = str(POLL_AFTER_SECONDS)
    return job


@router.get("/jobs", response_model=JobPage, responses=documented(422), summary="List jobs")
def list_jobs(
    broker: BrokerInUse,
    caller: CallerInUse,
    after: Annotated[str | None, Query(pattern=JOB_ID_PATTERN, description="Last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most jobs to return.")] = 20,
    status: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    name: Annotated[
        str | None, Query(max_length=200, description="Only jobs whose name contains this, ignoring case.")
    ] = None,
) -> JobPage:
    """Jobs from newest to oldest."""
    data, has_more = broker.jobs.list(after=after, limit=limit, state=status, name=name, owner=caller.owner_filter)
    return JobPage(data=data, has_more=has_more)


@router.get(
    "/jobs/{job_id}",
    response_model=JobRecord,
    responses={304: {"description": "Unchanged since the `ETag` in `If-None-Match`."}, **documented(404, 422)},
    summary="Poll a job",
)
async def get_job(job: ExistingJob, request: Request) -> Response:
    """The job with its stages and their progress. `Retry-After` is there while it is worth asking again."""
    body = job.model_dump_json().encode()
    headers = {"ETag": f'W/"{hashlib.sha256(body).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    if not job.state.is_final:
        headers["Retry-After"] = str(POLL_AFTER_SECONDS)
    if matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=JobRecord,
    responses=documented(404, 409, 422),
    summary="Cancel a job",
)
def cancel_job(job_id: OwnJobId, broker: BrokerInUse) -> JobRecord:
    """Asks a job to stop. What it has made so far stays. Workers notice within one heartbeat."""
    try:
        return broker.jobs.cancel(job_id)
    except KeyError:
        raise no_such_job(job_id) from None


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_model=JobRecord,
    responses=documented(404, 409, 422, 429),
    summary="Retry a failed or cancelled job",
)
def retry_job(
    job_id: OwnJobId, response: Response, broker: BrokerInUse, settings: SettingsInUse, caller: CallerInUse
) -> JobRecord:
    """Resumes a job that failed or was cancelled from its last checkpoints, with all that it has made."""
    try:
        job = broker.jobs.retry(
            job_id, max_unfinished=settings.max_queued_jobs, allowance=allowance_of(caller, settings)
        )
    except KeyError:
        raise no_such_job(job_id) from None
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = str(POLL_AFTER_SECONDS)
    return job


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    responses=documented(404, 409, 422),
    summary="Delete a finished job",
)
def delete_finished_job(job_id: OwnJobId, broker: BrokerInUse, storage: StorageInUse) -> None:
    """Removes the job with its shards, student and events. 409 while it has not ended: cancel it first."""
    try:
        delete_job(broker, storage, job_id)
    except KeyError:
        raise no_such_job(job_id) from None
