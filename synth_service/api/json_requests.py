"""Request bodies, read with care: limited in size, JSON only, and nothing in them that cannot be stored.

FastAPI reads a body with ``request.body()`` and ``request.json()``; ``JsonRoute`` hands it a request in
which these are stricter. What they refuse would otherwise fail somewhere behind: JSON has no NaN, a lone
surrogate cannot be written as UTF-8, a number of a million digits takes minutes to convert.
"""

import math
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from shared.specs.field_errors import field_path
from synth_service.api.problems import Problem, invalid_request, reject_json
from synth_service.wire import FieldError

MAX_VALUES: Final = 20_000
"""In one body, counted by the commas. A job has a few hundred, and its ``kwargs`` at most some thousands."""


class JsonRequest(Request):
    """A request whose body is JSON of at most ``settings.max_body_bytes``."""

    async def body(self) -> bytes:
        """The body. Raises Problem 413 as soon as it is known to be too long, and 415 if it is no JSON."""
        if not hasattr(self, "_body"):
            self._check_media_type()
            self._body = await self._read_limited(self.app.state.settings.max_body_bytes)
        return self._body

    def _check_media_type(self) -> None:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not (
            media_type.startswith("application/") and media_type.endswith("+json")
        ):
            detail = f"The body must be application/json, not {media_type[:100] or 'without a Content-Type'}."
            raise Problem(415, "unsupported_media_type", detail, hint="Send `Content-Type: application/json`.")

    async def _read_limited(self, max_bytes: int) -> bytes:
        announced = self.headers.get("content-length", "")
        body = bytearray()
        if not (announced.isdecimal() and int(announced) > max_bytes):
            try:
                async for chunk in self.stream():
                    body += chunk
                    if len(body) > max_bytes:
                        break
                else:
                    return bytes(body)
            except ClientDisconnect:
                # Nobody is left to read this answer; it only ends the request in good order.
                raise Problem(400, "bad_request", "The request ended before its body did.") from None
        detail = f"The body is longer than {max_bytes:,} bytes."
        hint = "The operator sets the limit with DFKD_MAX_BODY_BYTES."
        raise Problem(413, "body_too_large", detail, hint=hint, headers={"Connection": "close"})

    async def json(self) -> Any:
        """The parsed body. Raises Problem 422 if it is no JSON, or holds what no field may hold."""
        body = await self.body()
        # Before it is parsed: a value of two bytes takes fifty, and one that no field knows costs an error each.
        if body.count(b",") > MAX_VALUES:
            raise reject_json(f"The body has more than {MAX_VALUES:,} values.")
        try:
            data = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise reject_json(f"The body is not valid JSON: {error}") from None
        flaw = _find_flaw(data, ("body",))
        if flaw is not None:
            location, message = flaw
            raise invalid_request([FieldError(field=field_path(location), message=message)])
        return data


def _find_flaw(value: Any, location: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], str] | None:
    """The first value that JSON can write but nobody can use. At most 200 levels deep, as the parser sees to."""
    if isinstance(value, str) and "\0" in value:
        return location, "must not contain the character U+0000"
    if isinstance(value, float) and not math.isfinite(value):
        return location, "is too large for a 64-bit floating-point number"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return location, "is too large for a 64-bit integer"
    if isinstance(value, dict):
        if any("\0" in key for key in value):
            return location, "has a key that contains the character U+0000"
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return None
    return next((flaw for key, each in items if (flaw := _find_flaw(each, (*location, key))) is not None), None)


class JsonRoute(APIRoute):
    """A route that reads its body as ``JsonRequest`` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls for a request."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json
