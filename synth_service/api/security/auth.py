"""Who is calling: API keys in a header, or the session of a browser that signed in with one.

``AuthenticationMiddleware`` stands before every route, so that a new one is guarded unless ``PUBLIC_PATHS`` names it.
Without any key configured everybody is the same nameless caller.
"""

import hmac
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, cast
from urllib.parse import quote, urlsplit

import redis
import structlog
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from shared.api_keys import Allowance, ApiKey, Scope, new_api_key
from shared.jobs import JobRecord
from shared.settings import Settings
from synth_service.api.problems import MEDIA_TYPE, Problem
from synth_service.api.security.access import Keyring
from synth_service.api.security.headers import SAFE_METHODS
from synth_service.api.security.rate_limits import BURST_SECONDS, RateLimiter, network_of, too_many_requests
from synth_service.api.security.sessions import CSRF_HEADER, Session, Sessions, cookie_name

__all__ = ["AuthenticationMiddleware", "Caller", "CallerInUse", "describe_security", "new_api_key", "sign_in"]

logger = structlog.get_logger()

PUBLIC_PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/openapi.json", "/ui/sign-in"})
PUBLIC_PREFIX: Final = "/ui/static/"
METRICS_PATH: Final = "/metrics"
KEYS_PATH: Final = "/keys"
SIGN_OUT_PATH: Final = "/ui/sign-out"
SIGN_IN_PATH: Final = "/ui/sign-in"

WRONG_KEYS_PER_SECOND: Final = 1.0
"""From one address. Those that show a right key do not notice."""


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        name: of the API key; None where none is needed.
        sees_own_jobs_only: whether the jobs of other keys do not exist for this caller.
        scopes: what the key may do.
        fingerprint: tells the keys of one name apart.
        allowance: how much the key's owner may have at a time, as far as the key itself says.
    """

    name: str | None = None
    sees_own_jobs_only: bool = False
    scopes: frozenset[Scope] = frozenset(Scope)
    fingerprint: str = ""
    allowance: Allowance = field(default_factory=Allowance)

    @property
    def owner_filter(self) -> str | None:
        """Whose jobs this caller may see, as ``broker.jobs.list(owner=…)`` takes it."""
        return self.name if self.sees_own_jobs_only else None

    def may_see(self, job: JobRecord) -> bool:
        """Whether the job exists for this caller."""
        return self.owner_filter in (None, job.owner)


def allowance_of(caller: Caller, settings: Settings) -> Allowance:
    """How much a caller may have at a time: what the key says, and for what it leaves open the settings."""
    if caller.name is None:
        return Allowance()
    everybody = Allowance(
        queued_jobs=settings.max_queued_jobs_per_key,
        running_jobs=settings.max_running_jobs_per_key,
        bytes=settings.max_bytes_per_key,
    )
    return caller.allowance.or_else(everybody)


async def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


CallerInUse = Annotated[Caller, Depends(_caller)]


class AuthenticationMiddleware:
    """Lets through who shows a key or has a session, and says in ``request.state.caller`` who that is.

    Args:
        app: what requests go on to.
        settings: of the deployment.
        keyring: the keys that count.
        sessions: checks the cookies.
        wrong_keys: how many wrong keys an address may try.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, keyring: Keyring, sessions: Sessions, wrong_keys: RateLimiter
    ) -> None:
        per_second = settings.max_keyless_requests_per_second
        self._keyless = RateLimiter(per_second, BURST_SECONDS * per_second) if per_second else None
        self._app = app
        self._needs_key = bool(settings.api_keys)
        self._keyring = keyring
        self._own_jobs_only = settings.own_jobs_only
        self._public = PUBLIC_PATHS | ({METRICS_PATH} if settings.public_metrics else set())
        self._sessions = sessions
        self._wrong_keys = wrong_keys

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none, and none would be guarded
            return
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            state["caller"] = Caller()
            if self._needs_key and not self._is_public(scope["path"]):
                try:
                    await _renew(self._keyring)
                    state["caller"] = await self._authenticate(scope)
                    _check_scope(state["caller"], scope)
                except Problem as problem:
                    answer = problem.response() if problem.code != "api_key_missing" else _sign_in_or(problem, scope)
                    await answer(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        return path in self._public or path.startswith(PUBLIC_PREFIX)

    async def _authenticate(self, scope: AsgiScope) -> Caller:
        """Whoever calls. Raises Problem 401, 403, 429 or 503 for those who may not."""
        headers = Headers(scope=scope)
        presented = _presented_key(headers)
        if presented is not None:
            key = self._keyring.find(presented)
            if key is None:
                raise _wrong_key(self._wrong_keys, scope)
        else:
            session = await self._session(headers, scope)
            if session is None:
                self._count_keyless(scope)
                raise _unauthenticated("api_key_missing", "This service needs an API key.")
            if scope["method"] not in SAFE_METHODS:
                _check_csrf_token(headers, session)
            scope["state"]["session"] = session
            key = session.key
        sees_own_jobs_only = self._own_jobs_only and Scope.ADMIN not in key.scopes
        return Caller(key.name, sees_own_jobs_only, key.scopes, key.fingerprint, key.allowance)

    def _count_keyless(self, scope: AsgiScope) -> None:
        """Raises Problem 429 when an address without a key asks too often: refusing costs something too."""
        wait = self._keyless.seconds_to_wait(network_of(scope)) if self._keyless else 0.0
        if wait:
            raise too_many_requests(wait, "Send an API key. The operator makes keys with `dfkd key NAME`.")

    async def _session(self, headers: Headers, scope: AsgiScope) -> Session | None:
        name = cookie_name(scope["scheme"] == "https")
        cookies = headers.get("cookie", "")
        cookie = cookie_parser(cookies).get(name) if name in cookies else None
        if not cookie:
            return None
        if not self._sessions.is_ready:
            try:
                await run_in_threadpool(self._sessions.load_secret)
            except redis.RedisError as error:
                logger.warning("redis_unavailable", path=scope["path"], error=str(error))
                raise _uncheckable("sign-ins") from None
        return self._sessions.open(cookie)


def needed_scope(method: str, path: str) -> Scope | None:
    """What a key must be allowed to for a request; None where any key will do."""
    if path == SIGN_OUT_PATH:
        return None
    if path == METRICS_PATH:
        return Scope.METRICS
    if path == KEYS_PATH or path.startswith(f"{KEYS_PATH}/"):
        return Scope.ADMIN
    return Scope.READ if method in SAFE_METHODS else Scope.SUBMIT


def _check_scope(caller: Caller, scope: AsgiScope) -> None:
    needed = needed_scope(scope["method"], scope["path"])
    if needed is not None and needed not in caller.scopes:
        may = ", ".join(sorted(caller.scopes)) or "nothing"
        detail = f"This needs an API key with the scope `{needed}`; this one has {may}."
        raise Problem(403, "scope_missing", detail, hint="The operator makes keys with other scopes.")


async def sign_in(request: Request, presented: str) -> ApiKey | None:
    """The key that somebody typed into the sign-in page, for ``sessions.start_session``; None if it is none.

    Raises:
        Problem: 429 after too many wrong ones from the same address; 503 if it cannot be known whether the key counts.
    """
    keyring: Keyring = request.app.state.keyring
    await _renew(keyring)
    key = keyring.find(presented.strip())
    if key is None:
        problem = _wrong_key(request.app.state.wrong_keys, request.scope)
        if problem.status_code == 429:
            raise problem
    return key


async def _renew(keyring: Keyring) -> None:
    """Raises Problem 503 when this process has never heard which keys have ended."""
    if not await keyring.renew():
        raise _uncheckable("API keys")


def _uncheckable(what: str) -> Problem:
    detail = f"The Redis server does not answer, so {what} cannot be checked."
    return Problem(503, "redis_unavailable", detail, headers={"Retry-After": "2"})


def safe_next(path: str | None) -> str:
    """Where to go after the sign-in: the path that was asked for if it is a page of ours, else the first page."""
    if path and path.startswith("/ui/") and "\\" not in path and path.isprintable():
        parts = urlsplit(path)
        if not parts.scheme and not parts.netloc and parts.path != SIGN_IN_PATH:
            return path
    return "/ui/"


def _presented_key(headers: Headers) -> str | None:
    """The key of a request, empty when what should hold one does not; None when there is no such header."""
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    return headers.get("x-api-key")


def _wrong_key(limiter: RateLimiter, scope: AsgiScope) -> Problem:
    address = network_of(scope)
    wait = limiter.seconds_to_wait(address)
    if wait:
        return too_many_requests(wait, "Too many wrong API keys came from this address.")
    logger.warning("wrong_api_key", address=address, path=scope["path"])
    return _unauthenticated("api_key_invalid", "This API key is not accepted.", ', error="invalid_token"')


def _unauthenticated(code: str, detail: str, challenge: str = "") -> Problem:
    hint = "Send `Authorization: Bearer KEY`. The operator makes keys with `dfkd key NAME`."
    return Problem(401, code, detail, hint=hint, headers={"WWW-Authenticate": f'Bearer realm="dfkd"{challenge}'})


def _check_csrf_token(headers: Headers, session: Session) -> None:
    token = headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(token.encode(), session.csrf_token.encode()):
        detail = f"A change that a browser's session asks for needs the page's token in {CSRF_HEADER}."
        raise Problem(403, "csrf_token_invalid", detail, hint="Load the page again, or use an API key.")


def _sign_in_or(problem: Problem, scope: AsgiScope) -> ASGIApp:
    """The sign-in page for somebody who opens a page, the problem for everybody else."""
    path: str = scope["path"]
    is_page = path == "/ui" or path.startswith("/ui/")
    if is_page and scope["method"] in SAFE_METHODS and "text/html" in Headers(scope=scope).get("accept", ""):
        query = scope["query_string"].decode("latin-1")
        wanted = f"{quote(path)}?{query}" if query else quote(path)
        return RedirectResponse(f"{SIGN_IN_PATH}?next={quote(wanted, safe='')}", 303)
    return problem.response()


def describe_security(schema: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Adds to an OpenAPI document, in place, how callers show who they are and how they may be refused."""
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["bearer"] = {"type": "http", "scheme": "bearer", "description": "An API key."}
    schemes["header"] = {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."}
    schemes["session"] = {
        "type": "apiKey",
        "in": "cookie",
        "name": cookie_name(is_secure=False),
        "description": f"A sign-in of the dashboard. Changes need `{CSRF_HEADER}` too.",
    }
    schema["security"] = [{name: []} for name in schemes] if settings.api_keys else [{}, *({n: []} for n in schemes)]
    for path, operations in schema["paths"].items():
        is_public = path in PUBLIC_PATHS or (path == METRICS_PATH and settings.public_metrics)
        for operation in operations.values():
            if is_public:
                operation["security"] = []
            refusals = {"403": "Forbidden", "429": "Too Many Requests"} | ({} if is_public else {"401": "Unauthorized"})
            for status, phrase in refusals.items():
                content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetail"}}}
                operation["responses"].setdefault(status, {"description": phrase, "content": content})
            operation["responses"] = dict(sorted(operation["responses"].items()))
    return schema
