"""Polling a job to its end. An API that is away for a moment is waited for, since the job goes on without it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from shared.jobs import JobRecord
from synth_service.client.errors import ServerUnreachable
from synth_service.client.progress import Display, stages

POLL_SECONDS: Final = 0.5
LONGEST_POLL_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 60.0

J = TypeVar("J", bound=JobRecord)
"""A job with methods that block or with methods that are to be awaited."""


@dataclass(frozen=True)
class Poll(Generic[J]):
    """A job as the last poll found it, and how long the server would like to be left alone."""

    job: J
    retry_after_seconds: float | None


async def wait_for_end(
    poll: Callable[[], Awaitable[Poll[J]]],
    sleep: Callable[[float], Awaitable[None]],
    display: Display,
    *,
    timeout_seconds: float | None,
    patience_seconds: float,
) -> J:
    """Shows a job until it is in a final state, and returns it.

    Args:
        poll: asks for the job.
        sleep: waits between polls; what it raises ends the waiting.
        display: is shown every poll.
        timeout_seconds: longest time to wait; None is for ever.
        patience_seconds: how long the API may be away.

    Raises:
        TimeoutError: the job goes on after that time.
        ServerUnreachable: the API was away for longer.
        ApiError: there is no such job.
    """
    started_at = answered_at = time.monotonic()
    is_away = False
    errors: dict[str, str] = {}
    with display:
        while True:
            delay = POLL_SECONDS
            try:
                answer = await poll()
            except ServerUnreachable as error:
                if time.monotonic() - answered_at > patience_seconds:
                    raise
                if not is_away:
                    display.say(f"{error}; waiting for it; the job continues")
                is_away = True
            else:
                if is_away:
                    display.say("the service is back")
                answered_at, is_away = time.monotonic(), False
                for name, stage in stages(answer.job):
                    told = f"{stage.error.code}: {stage.error.message}" if stage.error else ""
                    if told and errors.get(name) != told and not answer.job.state.is_final:
                        display.say(f"{name}, attempt {stage.attempt}: {told}")
                    errors[name] = told
                display.show(answer.job)
                if answer.job.state.is_final:
                    return answer.job
                delay = min(max(answer.retry_after_seconds or 0.0, POLL_SECONDS), LONGEST_POLL_SECONDS)
            if timeout_seconds is not None:
                left = started_at + timeout_seconds - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"the job has not ended within {timeout_seconds:g} seconds; it continues")
                delay = min(delay, left)
            await sleep(delay)
