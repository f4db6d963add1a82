"""Signing in with an API key and out again. What a wrong key looks like is in ``problem_pages``."""

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from synth_service.api.dashboard.rendering import render
from synth_service.api.dependencies import SettingsInUse
from synth_service.api.problems import Problem
from synth_service.api.security.audit import audit_target
from synth_service.api.security.auth import safe_next, sign_in
from synth_service.api.security.sessions import end_session, start_session

MAX_FORM_BYTES = 4_096

router = APIRouter()

Next = Annotated[str | None, Query(alias="next", max_length=2_000)]


@router.get("/ui/sign-in")
async def show_sign_in(request: Request, settings: SettingsInUse, following: Next = None) -> Response:
    """The form; where no keys are configured there is nothing to sign in with."""
    if not settings.api_keys:
        return RedirectResponse(safe_next(following), 303)
    return render(request, "sign_in.html", following=following, error=None)


@router.post("/ui/sign-in")
async def take_key(request: Request, settings: SettingsInUse, following: Next = None) -> Response:
    """Starts a session and goes on to the page that was wanted."""
    answer = RedirectResponse(safe_next(following), 303, headers={"Cache-Control": "no-store"})
    if settings.api_keys:
        key = await sign_in(request, await _typed_key(request))
        if key is None:
            detail = "This key is not accepted. Check that it was copied whole."
            raise Problem(401, "api_key_invalid", detail, hint="The operator makes keys with `dfkd key NAME`.")
        await run_in_threadpool(start_session, request, answer, key)
        audit_target(request, key.fingerprint, of=key.name)
    return answer


@router.post("/ui/sign-out", status_code=204)
async def sign_out(request: Request) -> Response:
    """Ends the session of this browser."""
    answer = Response(status_code=204)
    await end_session(request, answer)
    return answer


async def _typed_key(request: Request) -> str:
    """The field ``key`` of the form, empty when there is none."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise Problem(413, "body_too_large", f"The form may have {MAX_FORM_BYTES} bytes.")
    return parse_qs(body.decode("utf-8", errors="replace")).get("key", [""])[0]
