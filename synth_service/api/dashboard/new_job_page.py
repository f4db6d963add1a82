"""The page of the new-job form: empty, filled from an earlier job, or from the digits example.

The form has no route of its own to post to. Its script checks with ``POST /jobs:validate`` and submits with
``POST /jobs``, as every client does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from shared.settings import Settings
from shared.specs.architectures import ARCHITECTURES, ZOOS
from shared.specs.presets import DEFAULT_PRESET, PRESETS
from synth_service.api.dashboard.job_form import form_sections, goal_of, shortest
from synth_service.api.dashboard.rendering import render
from synth_service.api.dependencies import JOB_ID_PATTERN, BrokerInUse, SettingsInUse, StorageInUse, existing_job
from synth_service.api.security.auth import CallerInUse
from synth_service.digits_example import example_folder, job_fields

DIGITS_TEACHER: Final = "digits/teacher.safetensors"
LISTED_MODELS: Final = 50

router = APIRouter(include_in_schema=False)


@router.get("/ui/new")
def new_job(
    request: Request,
    broker: BrokerInUse,
    storage: StorageInUse,
    settings: SettingsInUse,
    caller: CallerInUse,
    source: Annotated[
        str | None, Query(alias="from", pattern=JOB_ID_PATTERN, description="Start from this job.")
    ] = None,
    example: Annotated[Literal["digits"] | None, Query(description="Start from an example.")] = None,
) -> HTMLResponse:
    """The form. What it is filled with can be changed before anything is submitted."""
    job: Mapping[str, Any] = {}
    example_files = example_folder()
    has_example = example_files is not None and storage.exists(DIGITS_TEACHER)
    if source is not None:
        job = shortest(existing_job(source, broker, caller).spec)
    elif example is not None and has_example and example_files is not None:
        job = job_fields(example_files)
    models, _ = broker.models.list(limit=LISTED_MODELS, owner=caller.owner_filter)
    return render(
        request,
        "new_job.html",
        sections=form_sections(job),
        goal=goal_of(job),
        source=source,
        has_example=has_example,
        is_example_missing=example is not None and not has_example,
        architectures=ARCHITECTURES,
        architecture_forms=_architecture_forms(settings),
        models=models,
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        storage_root=storage.root,
        max_upload_bytes=settings.max_upload_bytes,
    )


def _architecture_forms(settings: Settings) -> list[str]:
    return [*(f"{zoo}:NAME" for zoo in ZOOS), *(f"{package}:FACTORY" for package in settings.allowed_factories)]
