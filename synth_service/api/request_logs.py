"""A log line for each request, and an id that ties it to whatever else is logged on its behalf.

Polls are most of the requests and say nothing new, so that they were answered is only logged at level debug: at any
other level they cost an id and no line. Query strings are never logged; a key may stand in one by mistake. Refusals
of strangers are counted rather than logged when there are many: whoever can connect could fill the disk.
"""

import re
import secrets
import time
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synth_service.api.security.rate_limits import RateLimiter, network_of

logger = structlog.get_logger()

REFUSALS_PER_SECOND: Final = 1.0
REFUSALS_AT_ONCE: Final = 50
"""Lines of requests that no key came with and that were refused, from one address."""

REQUEST_ID_HEADER: Final = b"x-request-id"
LONGEST_PATH: Final = 200

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET_METHODS = frozenset({"GET", "HEAD"})


class RequestLogMiddleware:
    """Logs requests, and answers with the ``X-Request-Id`` of the client or one of its own.

    Args:
        app: what requests go on to.
        is_verbose: log polls too.
    """

    def __init__(self, app: ASGIApp, is_verbose: bool) -> None:
        self._app = app
        self._is_verbose = is_verbose
        self._refusals = RateLimiter(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE)
        self._not_logged = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID_HEADER), b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        # Each request is a task with a context of its own, so nothing has to be taken back.
        structlog.contextvars.bind_contextvars(request=request_id.decode())
        started_at = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if self._is_verbose or status >= 400 or status == 0 or scope["method"] not in _QUIET_METHODS:
                self._log(scope, status, (time.perf_counter() - started_at) * 1000)

    def _log(self, scope: Scope, status: int, milliseconds: float) -> None:
        # As it was sent, percent-encoded: a decoded path may hold line breaks.
        path = scope.get("raw_path") or scope["path"].encode("ascii", "backslashreplace")
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": path[:LONGEST_PATH].decode("ascii", "backslashreplace"),
            "status": status or None,
            "ms": round(milliseconds, 1),
        }
        caller = getattr(scope.get("state", {}).get("caller"), "name", None)
        if caller is not None:
            fields["caller"] = caller
        elif 400 <= status < 500 and self._refusals.seconds_to_wait(network_of(scope)):
            self._not_logged += 1
            return
        if self._not_logged:
            fields["refusals_not_logged"], self._not_logged = self._not_logged, 0
        is_poll = scope["method"] in _QUIET_METHODS and 0 < status < 400
        (logger.debug if is_poll else logger.info)("request", **fields)
