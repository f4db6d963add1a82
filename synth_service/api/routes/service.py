"""The service itself: is it alive and ready, what does it offer, who works for it."""

from collections.abc import Callable
from contextlib import suppress

import anyio
import redis
from anyio.to_thread import run_sync
from fastapi import APIRouter

from shared.specs.architectures import ARCHITECTURES, ZOOS
from shared.specs.presets import DEFAULT_PRESET, PRESETS, TEACHER_WEIGHTS
from shared.storage import Storage
from shared.storage.identity import StorageIdentity
from synth_service.api.dependencies import BrokerInUse, IdentityInUse, SettingsInUse, StorageInUse
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

READY_WITHIN_SECONDS = 1.5
"""Below the two seconds that orchestrators commonly wait for a probe."""

router = APIRouter(tags=["service"])


@router.get("/healthz", response_model=Health, summary="Alive?")
async def healthz() -> Health:
    """Answers while the process lives, whatever becomes of Redis and the storage."""
    return Health()


@router.get("/readyz", response_model=Health, responses=documented(), summary="Ready?")
async def readyz(broker: BrokerInUse, storage: StorageInUse, identity: IdentityInUse) -> Health:
    """Whether jobs can be taken: Redis answers and the storage can be written. 503 with the reason if not."""
    probes = (
        ("redis_unavailable", "Redis", broker.jobs.ping),
        ("storage_unavailable", "The storage", lambda: _check_storage(storage, identity)),
    )
    reasons: dict[str, str] = {}

    async def run(code: str, what: str, probe: Callable[[], object]) -> None:
        try:
            with anyio.fail_after(READY_WITHIN_SECONDS):
                await run_sync(probe, abandon_on_cancel=True)
        except TimeoutError:
            reasons[code] = f"{what} did not answer within {READY_WITHIN_SECONDS:g} s."
        except Exception as error:  # whatever the reason is, it is the answer
            reasons[code] = f"{what} cannot be used ({type(error).__name__}: {error})."

    async with anyio.create_task_group() as tasks:
        for each in probes:
            tasks.start_soon(run, *each)
    for code, *_ in probes:
        if code in reasons:
            raise Problem(503, code, " ".join(reasons[key] for key in sorted(reasons)), headers={"Retry-After": "2"})
    return Health()


def _check_storage(storage: Storage, identity: StorageIdentity) -> None:
    """Raises what real work would meet, on this storage and no other."""
    with suppress(redis.RedisError):  # said by the other probe
        identity.compare()
    storage.check_writable()


@router.get("/architectures", response_model=ArchitectureList, summary="Networks that jobs may name")
async def list_architectures(settings: SettingsInUse) -> ArchitectureList:
    """Networks by name. Further ones come from torchvision, timm, or packages that the operator allows."""
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
