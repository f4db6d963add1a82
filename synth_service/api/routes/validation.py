"""A dry run of POST /jobs: the same checks and the resolved specification, and nothing is stored."""

from fastapi import APIRouter

from shared.specs import JobSpec
from shared.specs.estimates import estimate
from synth_service.api.admission import admit
from synth_service.api.dependencies import BrokerInUse, SettingsInUse, StorageInUse
from synth_service.api.json_requests import JsonRoute
from synth_service.api.problems import documented
from synth_service.api.security.auth import CallerInUse
from synth_service.api.security.ownership import check_own_files
from synth_service.wire import ValidatedJob

router = APIRouter(tags=["jobs"], route_class=JsonRoute)


@router.post(
    "/jobs:validate",
    response_model=ValidatedJob,
    responses=documented(413, 415, 422),
    summary="Check a job without starting it",
)
def validate_job(
    spec: JobSpec, broker: BrokerInUse, storage: StorageInUse, settings: SettingsInUse, caller: CallerInUse
) -> ValidatedJob:
    """What POST /jobs would store for this body and what the job comes to; refuses what POST /jobs refuses."""
    check_own_files(spec, broker, caller.owner_filter)
    admitted = admit(spec, storage, settings, broker.models, caller.owner_filter)
    return ValidatedJob(spec=admitted.model_dump(mode="json"), estimate=estimate(admitted))
