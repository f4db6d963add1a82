"""What routes ask for in their signatures, so that a route body starts with a job that exists."""

from typing import Annotated, cast

from fastapi import Depends, Path, Query, Request

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.settings import Settings
from shared.storage import Storage
from shared.storage.identity import StorageIdentity
from synth_service.api.problems import Problem
from synth_service.api.security.auth import CallerInUse
from synth_service.wire import STREAM_ID_PATTERN

JOB_ID_PATTERN = r"^job-[0-9a-f]{20}$"


# These look something up and nothing more; as plain functions they would each cost a trip to the thread pool.
async def _broker(request: Request) -> Broker:
    return cast(Broker, request.app.state.broker)


async def _storage(request: Request) -> Storage:
    return cast(Storage, request.app.state.storage)


async def _identity(request: Request) -> StorageIdentity:
    return cast(StorageIdentity, request.app.state.storage_identity)


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


BrokerInUse = Annotated[Broker, Depends(_broker)]
StorageInUse = Annotated[Storage, Depends(_storage)]
IdentityInUse = Annotated[StorageIdentity, Depends(_identity)]
SettingsInUse = Annotated[Settings, Depends(_settings)]

JobId = Annotated[str, Path(pattern=JOB_ID_PATTERN, description="Id of a job.")]
PageLimit = Annotated[int, Query(ge=1, le=1000, description="Most entries to return.")]
AfterEntry = Annotated[
    str | None, Query(pattern=STREAM_ID_PATTERN, description="Only what comes after the entry of this id.")
]


def no_such_job(job_id: str) -> Problem:
    """The answer to the id of a job that does not exist."""
    return Problem(404, "job_not_found", f"There is no job {job_id}.", hint="GET /jobs lists all.")


def existing_job(job_id: JobId, broker: BrokerInUse, caller: CallerInUse) -> JobRecord:
    """The job of the path, in one round trip to Redis. One that is not the caller's to see does not exist."""
    try:
        job = broker.jobs.get(job_id)
    except KeyError:
        raise no_such_job(job_id) from None
    if not caller.may_see(job):
        raise no_such_job(job_id)
    return job


def own_job_id(job_id: JobId, broker: BrokerInUse, caller: CallerInUse) -> str:
    """The id of the path, for routes that do not read the job: one that nobody can read can still be deleted."""
    if caller.owner_filter is not None:
        try:
            owner = broker.jobs.owner(job_id)
        except KeyError:
            raise no_such_job(job_id) from None
        if owner != caller.owner_filter:
            raise no_such_job(job_id)
    return job_id


ExistingJob = Annotated[JobRecord, Depends(existing_job)]
OwnJobId = Annotated[str, Depends(own_job_id)]
