"""One line in the log for each change that somebody made: who, with which key, from where, what.

Written for every request that is no mere question and succeeded, so a route that is added later has its line too.
Refusals are in the log of requests.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synth_service.api.security.headers import SAFE_METHODS
from synth_service.api.security.rate_limits import network_of

logger = structlog.get_logger()

_QUESTIONS: Final = frozenset({"/jobs:validate"})
_LONGEST_PATH: Final = 200


class AuditMiddleware:
    """Writes the lines.

    Args:
        app: what requests go on to.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or scope["path"] in _QUESTIONS:
            await self._app(scope, receive, send)
            return

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                location = next((value for name, value in message["headers"] if name.lower() == b"location"), b"")
                _note(scope, message["status"], location.decode("latin-1"))
            await send(message)

        await self._app(scope, receive, send_and_note)


def audit_target(request: Request, target: str, **more: str) -> None:
    """Says what a request changes, where its path and ``Location`` do not."""
    request.state.audit = {"target": target, **more}


def _note(scope: Scope, status: int, location: str) -> None:
    state: dict[str, Any] = scope["state"]
    caller = state["caller"]
    fields: dict[str, Any] = {
        "action": f"{scope['method']} {scope['path'][:_LONGEST_PATH]}",
        "status": status,
        "caller": caller.name,
        "key": caller.fingerprint or None,
        "address": network_of(scope),
    }
    if location:
        fields["target"] = location[:_LONGEST_PATH]
    logger.info("audit", **fields | state.get("audit", {}))
