"""Problems as pages: whatever goes wrong below ``/ui``, a browser that asked for a page gets one.

The API says every error as ``problem+json``. This middleware stands around it and turns those answers, and only
those, into HTML with the same status and headers, so that no route of the dashboard handles errors itself.
"""

from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synth_service.api.dashboard.rendering import render_text
from synth_service.api.problems import MEDIA_TYPE
from synth_service.wire import ProblemDetail

SIGN_IN_PATH = "/ui/sign-in"


class ProblemPageMiddleware:
    """Shows problems to people."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or not _is_page_wanted(scope):
            await self._app(scope, receive, send)
            return
        held: Message | None = None
        body = b""

        async def send_page(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start" and _is_problem(message):
                held = message
            elif held is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    page = _page(Request(scope), ProblemDetail.model_validate_json(body)).encode()
                    headers = MutableHeaders(raw=held["headers"])
                    headers["content-type"] = "text/html; charset=utf-8"
                    headers["content-length"] = str(len(page))
                    headers["cache-control"] = "no-store"
                    await send(held)
                    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else page})

        await self._app(scope, receive, send_page)


def _is_page_wanted(scope: Scope) -> bool:
    path: str = scope["path"]
    headers = Headers(scope=scope)
    is_part = "hx-request" in headers or path.startswith("/ui/static/")
    return (path == "/ui" or path.startswith("/ui/")) and not is_part and "text/html" in headers.get("accept", "")


def _is_problem(message: MutableMapping[str, Any]) -> bool:
    return Headers(raw=message["headers"]).get("content-type") == MEDIA_TYPE


def _page(request: Request, problem: ProblemDetail) -> str:
    """The sign-in form with what is wrong, or a page that says it."""
    if request.url.path == SIGN_IN_PATH and request.method == "POST":
        following = request.query_params.get("next")
        return render_text(request, "sign_in.html", following=following, error=problem.detail)
    return render_text(request, "problem.html", problem=problem, is_retryable=problem.status in (429, 502, 503))
