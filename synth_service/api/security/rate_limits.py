"""How many requests one caller may send: 429 with Retry-After beyond that.

Counted in this process, by the generic cell rate algorithm (ITU-T I.371): for each caller one number, the time
at which all that it has sent would have been due at the permitted rate. A poll thus costs no second round trip
to Redis; with several API processes each counts for itself.
"""

import ipaddress
import math
import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from synth_service.api.problems import Problem

MAX_CALLERS: Final = 10_000
"""Numbers that are kept: a flood from many addresses must not fill the memory."""

BURST_SECONDS: Final = 2.0
"""A caller that was silent may send this many seconds' worth at once."""

UNLIMITED_PATH: Final = "/healthz"
"""Costs nothing, and an orchestrator that gets a 429 restarts the process."""


class RateLimiter:
    """Permits each caller ``per_second`` requests on average and ``burst`` at once.

    Args:
        per_second: above 0.
        burst: at least 1.
        clock: seconds; only differences count.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / per_second
        self._tolerance = (max(burst, 1.0) - 1) * self._interval
        self._clock = clock
        self._due: dict[str, float] = {}
        self._next_sweep = -math.inf

    def seconds_to_wait(self, caller: str) -> float:
        """0 if the caller may send a request now, which is counted then; else how long it has to wait."""
        now = self._clock()
        due = max(self._due.get(caller, now), now)
        wait = due - now - self._tolerance
        # A hair above zero is rounding, and no reason to refuse.
        if wait > 1e-9:
            return wait
        if caller not in self._due and len(self._due) >= MAX_CALLERS:
            self._make_room(now)
        self._due[caller] = due + self._interval
        return 0.0

    def _make_room(self, now: float) -> None:
        """Forgets callers that are back at zero, at most once a second, and else whoever came first."""
        if now >= self._next_sweep:
            self._next_sweep = now + 1.0
            self._due = {caller: due for caller, due in self._due.items() if due > now}
        while len(self._due) >= MAX_CALLERS:
            del self._due[next(iter(self._due))]


def network_of(scope: Scope) -> str:
    """Whose address a request comes from: of IPv6 the first 64 bits, since one host has all of the rest."""
    host: str = scope["client"][0] if scope.get("client") else ""
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host


def too_many_requests(seconds_to_wait: float, hint: str) -> Problem:
    """The answer to a request that came too early."""
    retry_after = max(1, math.ceil(seconds_to_wait))
    detail = f"Too many requests. Try again in {retry_after} s."
    return Problem(429, "rate_limited", detail, hint=hint, headers={"Retry-After": str(retry_after)})


class RateLimitMiddleware:
    """Limits callers by the name of their key, and those without one by their address.

    Args:
        app: what requests go on to, once ``auth.AuthenticationMiddleware`` has said whose they are.
        per_second: requests permitted on average; 0 for any number.
    """

    def __init__(self, app: ASGIApp, per_second: float) -> None:
        self._app = app
        self._limiter = RateLimiter(per_second, BURST_SECONDS * per_second) if per_second else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if self._limiter is not None and scope["type"] == "http" and scope["path"] != UNLIMITED_PATH:
            name = scope["state"]["caller"].name
            wait = self._limiter.seconds_to_wait(f"key {name}" if name else f"address {network_of(scope)}")
            if wait:
                hint = "Poll less often. The operator sets the limit with DFKD_MAX_REQUESTS_PER_SECOND."
                await too_many_requests(wait, hint).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
