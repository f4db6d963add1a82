"""Events of a job: as a list, and as a stream of server-sent events (SSE).

The ids are those of the Redis stream, so ``Last-Event-ID`` is simply where reading goes on: no event is
missed or repeated over any number of reconnections. A stream ends after the job's last event.
"""

import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import redis
from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import State as AppState
from starlette.responses import StreamingResponse

from shared.broker import Broker
from shared.events import EventType
from shared.jobs import State
from synth_service.api.dependencies import AfterEntry, BrokerInUse, ExistingJob, PageLimit
from synth_service.api.problems import documented
from synth_service.wire import STREAM_ID_PATTERN, EventPage

router = APIRouter(tags=["jobs"])

POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
"""Proxies cut connections that are silent for about a minute."""

BATCH = 500
RETRIED = EventType.JOB_RETRIED
LAST_EVENTS = frozenset(f"job_{state}" for state in State if state.is_final)


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventPage,
    responses={
        200: {
            "description": "A list, or with `Accept: text/event-stream` a stream that ends when the job does.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **documented(404, 422),
    },
    summary="Events of a job",
)
async def list_events(
    job: ExistingJob,
    request: Request,
    broker: BrokerInUse,
    after: AfterEntry = None,
    limit: PageLimit = 100,
    last_event_id: Annotated[
        str | None, Header(pattern=STREAM_ID_PATTERN, description="Where a stream was cut; wins over `after`.")
    ] = None,
) -> Response:
    """What happened to a job, in order. `limit` does not apply to a stream."""
    if "text/event-stream" in request.headers.get("accept", ""):
        stream = _server_sent(broker, job.id, last_event_id or after, job.state.is_final, request.app.state)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, headers=headers, media_type="text/event-stream")
    found = await run_in_threadpool(broker.reports.events, job.id, after=after, limit=limit + 1)
    page = EventPage(data=found[:limit], has_more=len(found) > limit)
    return Response(page.model_dump_json(), media_type="application/json")


async def _server_sent(
    broker: Broker, job_id: str, after: str | None, is_final: bool, app_state: AppState
) -> AsyncIterator[str]:
    """The stream. ``is_final`` was read before the first event is, so what is read then includes the last one."""
    last_sign_of_life = time.monotonic()
    yield "retry: 1000\n\n"
    while not app_state.is_stopping:
        try:
            events = await run_in_threadpool(broker.reports.events, job_id, after=after, limit=BATCH)
        except redis.RedisError:
            events = []  # the connection outlives the outage: reading goes on where it stopped
        for event in events:
            yield f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
            after = event.id
            # A retried job goes on after its last event.
            is_final = event.type in LAST_EVENTS or (is_final and event.type != RETRIED)
        if events:
            last_sign_of_life = time.monotonic()
        if len(events) == BATCH:
            continue
        if is_final:
            return
        if time.monotonic() - last_sign_of_life > HEARTBEAT_SECONDS:
            last_sign_of_life = time.monotonic()
            yield ": still here\n\n"
        await anyio.sleep(POLL_SECONDS)
