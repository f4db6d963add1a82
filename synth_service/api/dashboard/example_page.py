"""The first job of an empty dashboard: one button runs the digits example, whose files are in the package.

A client does the same by copying or uploading the files and posting the job.
"""

from fastapi import APIRouter, Response

from shared.jobs import JobRecord
from shared.specs import JobSpec
from synth_service.api.dependencies import BrokerInUse, IdentityInUse, SettingsInUse, StorageInUse
from synth_service.api.problems import Problem
from synth_service.api.routes.jobs import create_job
from synth_service.api.security.auth import CallerInUse
from synth_service.digits_example import example_folder, job_fields, put_inputs

router = APIRouter(include_in_schema=False)


@router.post("/ui/examples/digits", status_code=202, response_model=JobRecord)
def run_digits_example(
    response: Response,
    broker: BrokerInUse,
    storage: StorageInUse,
    identity: IdentityInUse,
    settings: SettingsInUse,
    caller: CallerInUse,
) -> JobRecord:
    """Puts the example's files into the storage, and starts its job."""
    example = example_folder()
    if example is None:
        raise Problem(404, "example_missing", "The digits example is not part of this installation.")
    fields = job_fields(example)
    identity.establish(in_empty_root=True)  # before there is anything in it
    put_inputs(fields, example, storage)
    return create_job(JobSpec.model_validate(fields), response, broker, storage, identity, settings, caller)
