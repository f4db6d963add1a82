"""API keys while the service runs: who has one, a new one, and the end of one. For keys with the scope ``admin``.

Where no key is configured nobody is asked for one, so that there is nothing to make either.
"""

from __future__ import annotations

import time
from typing import Annotated, cast

from fastapi import APIRouter, Path, Request, Response
from pydantic import SecretStr

from shared.api_keys import ApiKey, digest_of, new_api_key
from synth_service.api.dependencies import SettingsInUse
from synth_service.api.json_requests import JsonRoute
from synth_service.api.problems import Problem, documented
from synth_service.api.security.access import Keyring
from synth_service.api.security.audit import audit_target
from synth_service.wire import FieldError, KeyDetail, KeyList, KeyRequest, NewKey

router = APIRouter(tags=["keys"], route_class=JsonRoute)

Fingerprint = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="Of a key, as GET /keys shows it.")]


@router.get("/keys", response_model=KeyList, responses=documented(), summary="List API keys")
def list_keys(request: Request, settings: SettingsInUse) -> KeyList:
    """The keys that count now: neither expired nor revoked."""
    configured = {key.fingerprint for key in settings.api_keys}
    return KeyList(data=[_described(key, key.fingerprint in configured) for key in _keyring(request).all()])


@router.post(
    "/keys", status_code=201, response_model=NewKey, responses=documented(409, 413, 415, 422), summary="Make an API key"
)
def make_key(written: KeyRequest, request: Request, response: Response, settings: SettingsInUse) -> NewKey:
    """Makes a key that counts at once, in every API process within a second. It is shown this once."""
    if not settings.api_keys:
        hint = "The operator sets DFKD_API_KEYS; `dfkd key NAME` makes the first one."
        raise Problem(409, "no_keys_configured", "Without a configured key nobody is asked for one.", hint=hint)
    if written.expires_at is not None and written.expires_at <= time.time():
        error = FieldError(field="expires_at", message="is in the past")
        raise Problem(422, "invalid_request", "expires_at: is in the past.", errors=[error])
    secret, _ = new_api_key(written.name)
    key = ApiKey(
        name=written.name,
        digest=SecretStr(digest_of(secret)),
        scopes=frozenset(written.scopes),
        expires_at=written.expires_at,
        allowance=written.allowance,
    )
    if not _keyring(request).add(key):
        raise Problem(409, "too_many_keys", "There are as many keys as there may be.", hint="Revoke some first.")
    response.headers["Location"] = f"/keys/{key.fingerprint}"
    audit_target(request, key.fingerprint, of=key.name)
    return NewKey(key=secret, **_described(key, is_configured=False).model_dump())


@router.delete("/keys/{fingerprint}", status_code=204, responses=documented(404, 422), summary="Revoke an API key")
def revoke_key(fingerprint: Fingerprint, request: Request) -> None:
    """Ends a key and its sign-ins, at once, in every API process within a second. Configured keys stay revoked too."""
    keyring = _keyring(request)
    key = next((key for key in keyring.all() if key.fingerprint == fingerprint), None)
    if key is None:
        raise Problem(404, "key_not_found", f"There is no key {fingerprint}.", hint="GET /keys lists all.")
    keyring.revoke(fingerprint)
    audit_target(request, fingerprint, of=key.name)


def _described(key: ApiKey, is_configured: bool) -> KeyDetail:
    return KeyDetail(
        name=key.name,
        fingerprint=key.fingerprint,
        scopes=sorted(key.scopes),
        expires_at=key.expires_at,
        allowance=key.allowance,
        is_configured=is_configured,
    )


def _keyring(request: Request) -> Keyring:
    return cast(Keyring, request.app.state.keyring)
