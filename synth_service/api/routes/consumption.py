"""How far another program has come that trains on the images of a job (`distillation: external`)."""

from fastapi import APIRouter

from shared.broker import NotExternal
from synth_service.api.dependencies import BrokerInUse, OwnJobId, no_such_job
from synth_service.api.json_requests import JsonRoute
from synth_service.api.problems import Problem, documented
from synth_service.wire import Consumed, ConsumedUntil

router = APIRouter(tags=["outputs"], route_class=JsonRoute)


@router.post(
    "/jobs/{job_id}/consumed",
    response_model=Consumed,
    responses=documented(404, 409, 413, 415, 422),
    summary="Say which shards are used up",
)
def report_consumed(job_id: OwnJobId, told: ConsumedUntil, broker: BrokerInUse) -> Consumed:
    """For a job with `distillation: external`: lets synthesis go on. Moves only forward, so it may be sent again."""
    try:
        known = broker.shards.used_up(job_id, told.until)
    except KeyError:
        raise no_such_job(job_id) from None
    except NotExternal:
        detail = f"No synthesis waits for what is made of the images of {job_id}."
        hint = "Only a job with `distillation: external` does."
        raise Problem(409, "not_external", detail, hint=hint) from None
    return Consumed(until=known.until, shards_consumed=known.shards, shards=known.announced)
