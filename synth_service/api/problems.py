"""Errors as every client sees them: ``application/problem+json`` (RFC 9457) with a stable ``code``.

Routes raise ``Problem``. Everything that goes wrong elsewhere ends in one of the handlers here, and what
no handler knew of in ``ProblemMiddleware``: no other form of error leaves the service, and no traceback.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

import redis
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.broker import AllowanceUsed, JobFinished, JobSucceeded, JobUnfinished, QueueFull
from shared.broker.connection import will_pass
from shared.specs.field_errors import described
from shared.storage import StorageUnavailable
from shared.storage.durable_files import is_full
from synth_service.wire import FieldError, ProblemDetail

logger = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
MAX_REPORTED_ERRORS = 100

_CODES = {
    400: "bad_request",
    404: "no_such_path",
    405: "method_not_allowed",
    413: "body_too_large",
    416: "range_not_satisfiable",
    500: "internal_error",
}
_HINTS = {
    "no_such_path": "GET /openapi.json lists every path.",
    "redis_unavailable": "Nothing is lost; try again shortly. GET /readyz tells when the service is ready.",
    "storage_unavailable": "Nothing is lost; try again shortly. GET /readyz tells when the service is ready.",
    "internal_error": "This is a fault of the service. Its log has the details.",
}


class Problem(HTTPException):
    """An answer that is an error.

    Args:
        status: HTTP status.
        code: stable, snake_case.
        detail: what is wrong with this very request.
        errors: offending fields.
        hint: the remedy.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code = code
        self.errors = errors
        self.hint = hint or _HINTS.get(code)

    def response(self) -> Response:
        """The problem as sent."""
        problem = ProblemDetail(
            title=HTTPStatus(self.status_code).phrase,
            status=self.status_code,
            code=self.code,
            detail=self.detail,
            errors=list(self.errors) or None,
            hint=self.hint,
        )
        body = problem.model_dump_json(exclude_none=True)
        return Response(body, self.status_code, headers=self.headers, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route that answers with these errors, besides 500 and 503, which all may."""
    return {
        status: {"model": ProblemDetail, "description": HTTPStatus(status).phrase}
        for status in sorted({*statuses, 500, 503})
    }


def describe_in_openapi(schema: dict[str, Any]) -> dict[str, Any]:
    """Corrects what FastAPI makes of our routes, in place.

    Error responses get their true media type, a parameter that may be left out is not one that may be null (a query or
    a header cannot say null), and the specification in an answer is of the same type as the one that is posted.
    """
    schemas = schema["components"]["schemas"]
    for answer in ("JobRecord", "ValidatedJob"):
        field = schemas[answer]["properties"]["spec"]
        schemas[answer]["properties"]["spec"] = {
            "allOf": [{"$ref": "#/components/schemas/JobSpec"}],
            **{name: text for name, text in field.items() if name in ("title", "description")},
        }
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                _without_null(parameter["schema"])
            for status, response in operation["responses"].items():
                if status >= "400" and "application/json" in response.get("content", {}):
                    response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
    return schema


def _without_null(schema: dict[str, Any]) -> None:
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        del schema["anyOf"]
        schema.update(choices[0])


def install_handlers(app: FastAPI) -> None:
    """Registers the handlers of every error that is foreseen."""
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(QueueFull, _queue_full)
    app.add_exception_handler(AllowanceUsed, _allowance_used)
    app.add_exception_handler(JobFinished, _job_finished)
    app.add_exception_handler(JobUnfinished, _job_unfinished)
    app.add_exception_handler(JobSucceeded, _job_succeeded)
    app.add_exception_handler(redis.RedisError, _redis_problem)
    app.add_exception_handler(OSError, _storage_problem)


async def _http_problem(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    if isinstance(error, Problem):
        return error.response()
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _method_not_allowed(request).response()
    code = _CODES.get(error.status_code, HTTPStatus(error.status_code).name.lower())
    return Problem(error.status_code, code, error.detail, headers=error.headers).response()


def _method_not_allowed(request: Request) -> Problem:
    """Names every method of the path; the router knows only those of the first route that has it."""
    allowed: set[str] = set()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes):
            allowed |= {method, "HEAD"} if method == "GET" else {method}
    listed = ", ".join(sorted(allowed))
    detail = f"{request.method} is not allowed here, but {listed or 'nothing'} is."
    return Problem(405, "method_not_allowed", detail, headers={"Allow": listed})


async def _validation_problem(_request: Request, error: Exception) -> Response:
    # To describe an error costs more than to make one, and nobody reads a thousand.
    found = cast(RequestValidationError, error).errors()[:ERRORS_TOLD]
    errors = [FieldError(field=field, message=message) for field, message in map(described, found)]
    return invalid_request(errors).response()


ERRORS_TOLD: Final = 100

ALLOWANCES: Final = {
    "queued_jobs": (429, "too_many_queued_jobs", "as many jobs waiting", "Wait for one to start, or cancel one."),
    "running_jobs": (429, "too_many_running_jobs", "as many jobs running", "Wait for one to end, or cancel one."),
    "bytes": (403, "storage_allowance_used", "no room left for this", "Delete jobs or models that are not needed."),
}
"""What a key's owner may have of everything: status, code, what there is, what to do."""


def allowance_used(what: str) -> Problem:
    """The answer to somebody whose key allows no more."""
    status, code, there_is, hint = ALLOWANCES[what]
    headers = {"Retry-After": "10"} if status == 429 else {}
    detail = f"There are {there_is} as this API key allows." if status == 429 else f"This API key allows {there_is}."
    return Problem(status, code, detail, hint=hint, headers=headers)


async def _allowance_used(_: Request, error: Exception) -> Response:
    return allowance_used(str(error)).response()


async def _queue_full(_request: Request, _error: Exception) -> Response:
    detail = "As many unfinished jobs as this deployment allows are waiting already."
    hint = "Wait for some to finish, or cancel some. The operator sets the limit with DFKD_MAX_QUEUED_JOBS."
    return Problem(429, "queue_full", detail, hint=hint, headers={"Retry-After": "30"}).response()


async def _job_finished(_request: Request, error: Exception) -> Response:
    return Problem(409, "job_finished", f"{error} has finished already, so there is nothing to cancel.").response()


async def _job_unfinished(_request: Request, error: Exception) -> Response:
    hint = "Cancel it with POST /jobs/{id}/cancel, and ask again once its workers have let go."
    return Problem(409, "job_unfinished", f"{error} has not ended yet.", hint=hint).response()


async def _job_succeeded(_request: Request, error: Exception) -> Response:
    hint = "Post its `spec` again for another run."
    return Problem(409, "job_succeeded", f"{error} has succeeded, so there is nothing to retry.", hint=hint).response()


async def _redis_problem(request: Request, error: Exception) -> Response:
    if will_pass(error):
        logger.warning("redis_unavailable", path=request.url.path, error=str(error))
        detail = "The Redis server does not answer, or accepts no writes."
        return Problem(503, "redis_unavailable", detail, headers={"Retry-After": "2"}).response()
    logger.error("request_failed", path=request.url.path, exc_info=error)
    return _internal_error().response()


async def _storage_problem(request: Request, error: Exception) -> Response:
    if isinstance(error, StorageUnavailable):
        logger.warning("storage_unavailable", path=request.url.path, error=str(error))
        detail = "The storage does not answer, refuses access, or is not the one of this deployment."
        return Problem(503, "storage_unavailable", detail, headers={"Retry-After": "5"}).response()
    if is_full(error):
        logger.warning("storage_full", path=request.url.path, error=str(error))
        hint = "Delete jobs or models that are no longer needed, or ask the operator for room."
        return Problem(507, "storage_full", "The storage has no room for it.", hint=hint).response()
    logger.error("request_failed", path=request.url.path, exc_info=error)
    return _internal_error().response()


def _internal_error() -> Problem:
    return Problem(500, "internal_error", "The service failed to handle this request.")


class ProblemMiddleware:
    """Around all that answers: problems in place of whatever error came without one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = is_replaced = False

        async def send_or_replace(message: Message) -> None:
            nonlocal is_started, is_replaced
            if message["type"] == "http.response.start":
                is_started = True
                headers = dict(message["headers"])
                is_replaced = message["status"] >= 400 and headers.get(b"content-type") != MEDIA_TYPE.encode()
                if is_replaced:
                    await _plain_error(message["status"], headers).response()(scope, receive, send)
            if not is_replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_or_replace)
        except Exception:
            logger.exception("request_failed", path=scope["path"])
            if is_started:
                raise  # too late for another answer: the server cuts the connection, so no client takes it for whole
            await _internal_error().response()(scope, receive, send)


def _plain_error(status: int, headers: Mapping[bytes, bytes]) -> Problem:
    """The problem for an error of the framework, such as a range beyond the end of a file."""
    kept = {name.decode(): value.decode() for name, value in headers.items() if name in (b"content-range", b"allow")}
    phrase = HTTPStatus(status).phrase
    return Problem(status, _CODES.get(status, HTTPStatus(status).name.lower()), f"{phrase}.", headers=kept)


def invalid_request(errors: Sequence[FieldError]) -> Problem:
    """The answer to a request with such fields."""
    detail = "; ".join(f"{each.field or 'body'}: {each.message}" for each in errors[:3])
    if len(errors) > 3:
        detail += f"; and {len(errors) - 3} more"
    return Problem(422, "invalid_request", detail, errors=errors[:MAX_REPORTED_ERRORS])


def reject_json(detail: str) -> Problem:
    """The answer to a body that cannot be read as JSON."""
    hint = "Send one JSON object (RFC 8259): UTF-8, no NaN or Infinity, at most 200 levels deep."
    return Problem(422, "invalid_json", detail, hint=hint, errors=[FieldError(field="", message=detail)])
