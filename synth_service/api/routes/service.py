"""The service itself: is it alive and ready, what does it offer, who works for it."""

from fastapi import APIRouter, Request

from shared.specs.architectures import ARCHITECTURES, ZOOS
from shared.specs.presets import DEFAULT_PRESET, PRESETS, TEACHER_WEIGHTS
from synth_service.api.dependencies import BrokerInUse, SettingsInUse
from synth_service.api.problems import Problem, documented
from synth_service.wire import (
    ArchitectureDetail,
    ArchitectureList,
    Health,
    Preset,
    PresetList,
    WorkerDetail,
    WorkerList,
)

_PARTS = {"redis_unavailable": "Redis", "storage_unavailable": "The storage"}

router = APIRouter(tags=["service"])


@router.get("/healthz", response_model=Health, summary="Alive?")
async def healthz() -> Health:
    """Answers while the process lives, whatever becomes of Redis and the storage."""
    return Health()


@router.get("/readyz", response_model=Health, responses=documented(), summary="Ready?")
async def readyz(request: Request) -> Health:
    """Whether jobs can be taken: Redis and the storage can be written. 503 with the reason if not."""
    complaints = await request.app.state.readiness.complaints()
    if complaints:
        reasons = [f"{_PARTS[code]} cannot be used ({complaint.kind})." for code, complaint in complaints.items()]
        raise Problem(503, next(iter(complaints)), " ".join(reasons), headers={"Retry-After": "2"})
    return Health()


@router.get("/architectures", response_model=ArchitectureList, summary="Networks that jobs may name")
async def list_architectures(settings: SettingsInUse) -> ArchitectureList:
    """Networks by name. Others come from torchvision, timm, transformers, or packages that the operator allows."""
    data = [
        ArchitectureDetail(name=name, family=each.family, description=each.description, arguments=dict(each.arguments))
        for name, each in ARCHITECTURES.items()
    ]
    forms = [f"{zoo}:NAME" for zoo in ZOOS] + [f"{package}:FACTORY" for package in settings.allowed_factories]
    return ArchitectureList(data=data, forms=forms)


@router.get("/presets", response_model=PresetList, summary="Named settings of `synthesis`")
async def list_presets() -> PresetList:
    """Presets for `synthesis.preset`."""
    return PresetList(
        data=[
            Preset(
                name=name,
                is_default=name == DEFAULT_PRESET,
                settings=dict(settings),
                by_teacher={arch: dict(each) for arch, each in TEACHER_WEIGHTS.items()}
                if settings["method"] == "fast-meta" and "one_hot" not in settings
                else {},
            )
            for name, settings in PRESETS.items()
        ]
    )


@router.get(
    "/workers",
    response_model=WorkerList,
    response_model_exclude_unset=True,
    responses=documented(),
    summary="Workers",
)
def list_workers(broker: BrokerInUse) -> WorkerList:
    """Workers that were heard of within the last minute."""
    return WorkerList(data=[WorkerDetail.model_validate(each) for each in broker.workers.all()])
