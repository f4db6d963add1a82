"""What protects a browser's user: headers of every response, and the refusal of requests that other sites caused.

A page of another site can send requests to this service, also to one that listens on loopback only, and it can
let a name of its own point here (DNS rebinding) to read the answers as well. The first is told by what browsers
say of a request's origin, the second by the name that they asked for.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synth_service.api.problems import Problem

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
)
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_ENCODED = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Probes come under whatever name an orchestrator gives, and their answers hold nothing.
_PROBES = frozenset({"/healthz", "/readyz"})


class SecurityHeadersMiddleware:
    """Adds the headers, and ``no-store`` where a route does not say for itself how its answer may be kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                added = _ENCODED if _has_cache_control(headers) else [*_ENCODED, (b"cache-control", b"no-store")]
                message["headers"] = [*headers, *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _has_cache_control(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"cache-control" for name, _ in headers)


class OriginMiddleware:
    """Refuses requests for a foreign host name, and changes that another site asks for.

    Args:
        app: what requests go on to.
        allowed_hosts: names under which clients reach the service, or ``*``.
        has_keys: whether callers must show an API key. A rebound name gives a foreign page no key, so any name
            will do then unless ``allowed_hosts`` says which.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str], has_keys: bool) -> None:
        self._app = app
        self._any_host = "*" in allowed_hosts or (has_keys and not allowed_hosts)
        self._hosts = {name.lower() for name in allowed_hosts} | _LOCAL_NAMES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            problem = None
            if not (self._any_host or scope["path"] in _PROBES or self._is_allowed(headers.get("host", ""))):
                problem = _host_not_allowed(headers.get("host", ""))
            elif scope["method"] not in SAFE_METHODS and is_cross_site(headers):
                detail = "This request comes from a page of another site."
                hint = "Send it from a program, or from a page of this service."
                problem = Problem(403, "cross_site_request", detail, hint=hint)
            if problem is not None:
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        name = host_name(host)
        return name in self._hosts or _is_address(name)


def host_name(host: str) -> str:
    """The name of a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser says that a page of another origin caused this request. Other clients say nothing.

    ``Sec-Fetch-Site`` tells it directly, and is right behind a proxy too. Browsers send it only over HTTPS and to
    loopback; elsewhere ``Origin`` is compared with the host that was asked. Another port is another origin.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _is_address(name: str) -> bool:
    """Whether it is an IP address. Those cannot be rebound: there is no DNS in between."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_not_allowed(host: str) -> Problem:
    detail = f"This service does not go by the name {host_name(host)[:200]!r}."
    hint = "Use localhost or its IP address. The operator adds names with DFKD_ALLOWED_HOSTS."
    return Problem(403, "host_not_allowed", detail, hint=hint)
