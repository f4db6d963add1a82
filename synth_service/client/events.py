"""Following the events of a job over any number of connections, each event exactly once.

The id of an event says where reading goes on (``Last-Event-ID``), and an event counts once all of it has arrived:
what a cut leaves half-sent is sent again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Final

from shared.jobs import Event, JobRecord, State
from synth_service.client.connection import Connection, Request, backoff, path_of
from synth_service.client.errors import ServerUnreachable
from synth_service.wire import EventPage

SILENCE_SECONDS: Final = 40.0
"""The API sends a sign of life every 15 seconds."""

PAGE: Final = 500
LAST_EVENTS: Final = frozenset(f"job_{state}" for state in State if state.is_final)


async def follow_events(
    connection: Connection, job_id: str, after: str | None, patience_seconds: float
) -> AsyncGenerator[Event, None]:
    """Events as they happen, to the last one of the job.

    Args:
        connection: to the API.
        job_id: of the job.
        after: id of an event; only later ones come.
        patience_seconds: how long the API may be away.

    Raises:
        ServerUnreachable: it was away for longer.
        ApiError: there is no such job.
        UnexpectedAnswer: there are no event streams there.
    """
    path = path_of("jobs", job_id, "events")
    last_type = ""
    was_final = False
    failures = 0
    heard_at = time.monotonic()
    while True:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after is not None:
            headers["Last-Event-ID"] = after
        try:
            request = Request("GET", path, headers=headers, timeout_seconds=SILENCE_SECONDS)
            async with connection.stream(request) as answer:
                if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    raise connection.unexpected(request)
                async for message in connection.events(answer):
                    heard_at, failures = time.monotonic(), 0
                    if message.data:  # not a sign of life
                        event = Event.model_validate_json(message.data)
                        after, last_type = event.id, event.type
                        yield event
                        heard_at = time.monotonic()  # however long the caller took
            if last_type in LAST_EVENTS or was_final:
                return
            # The stream ended and the job did not: the API is restarting, or the job had ended before we came.
            record = await connection.ask(Request("GET", path_of("jobs", job_id)), JobRecord.model_validate)
            was_final = record.state.is_final
        except ServerUnreachable:
            if time.monotonic() - heard_at > patience_seconds:
                raise
        await connection.sleep(backoff(failures))
        failures += 1


async def list_events(connection: Connection, job_id: str, after: str | None) -> AsyncGenerator[Event, None]:
    """The events until now, oldest first. Raises as ``Connection.send``."""
    path = path_of("jobs", job_id, "events")
    has_more = True
    while has_more:
        params = {"limit": str(PAGE), **({"after": after} if after is not None else {})}
        page = await connection.ask(Request("GET", path, params=params), EventPage.model_validate)
        for event in page.data:
            after = event.id
            yield event
        has_more = page.has_more
