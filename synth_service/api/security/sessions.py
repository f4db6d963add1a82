"""Sign-ins of the dashboard: a signed cookie that names the API key, and a token against forged requests.

The server keeps which of them were signed out, and nothing else. The secret that signs lies in Redis, so a session
outlives a restart and holds for every API process, and what an operator writes into ``DFKD_API_KEYS`` is not enough to
make a session. The cookie carries the key's name and fingerprint: a session ends when its key is removed, replaced,
revoked or expires, when somebody signs out, or after ``session_hours``.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from itsdangerous import BadData, URLSafeTimedSerializer

from shared.api_keys import ApiKey
from synth_service.api.security.access import Keyring

CSRF_HEADER: Final = "X-CSRF-Token"
MAX_COOKIE_LENGTH: Final = 1_000


@dataclass(frozen=True)
class Session:
    """A sign-in that holds.

    Attributes:
        key: the API key that was shown then.
        csrf_token: what requests that change something must repeat in the header ``X-CSRF-Token``.
    """

    key: ApiKey
    csrf_token: str


class Sessions:
    """Makes and checks the cookies of one deployment.

    Args:
        keyring: keys that may be signed in with, and sign-ins that have ended.
        hours: for which a session lasts.
        secret: gives what signs; asked once, when the first session needs it. May block.
    """

    def __init__(self, keyring: Keyring, hours: float, secret: Callable[[], str]) -> None:
        self._keyring = keyring
        self.seconds = int(hours * 3600)
        self._secret = secret
        self._signer: URLSafeTimedSerializer | None = None
        self._csrf_key = b""

    @property
    def is_ready(self) -> bool:
        """Whether the secret is here, so that nothing below blocks."""
        return self._signer is not None

    def load_secret(self) -> None:
        """Fetches the secret unless it is here. Raises redis.RedisError when its server is away."""
        if self._signer is None:
            secret = self._secret()
            self._csrf_key = hashlib.sha256(f"csrf {secret}".encode()).digest()
            self._signer = URLSafeTimedSerializer(
                secret, salt="dfkd session", signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256}
            )

    def cookie_for(self, key: ApiKey) -> str:
        """The cookie's value of a new session."""
        return str(self._loaded().dumps([key.name, key.fingerprint]))

    def open(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it was not made here, has run out, or its key is no longer accepted."""
        if len(cookie) > MAX_COOKIE_LENGTH:
            return None
        try:
            name, fingerprint = self._loaded().loads(cookie, max_age=self.seconds)
        except (BadData, ValueError, TypeError):
            return None
        key = self._keyring.of_session(name, fingerprint, cookie)
        return None if key is None else Session(key, self._csrf_token(cookie))

    def _csrf_token(self, cookie: str) -> str:
        return hmac.new(self._csrf_key, cookie.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()

    def _loaded(self) -> URLSafeTimedSerializer:
        self.load_secret()
        assert self._signer is not None
        return self._signer


def cookie_name(is_secure: bool) -> str:
    """Name of the cookie. Browsers take a ``__Host-`` one only from this very host, over HTTPS."""
    return "__Host-dfkd_session" if is_secure else "dfkd_session"


def start_session(request: Request, response: Response, key: ApiKey) -> None:
    """Signs the browser in with a key that ``auth.sign_in`` has accepted.

    Raises:
        redis.RedisError: the first sign-in of this process, while Redis is away.
    """
    sessions = _sessions(request)
    _set_cookie(request, response, sessions.cookie_for(key), sessions.seconds)


async def end_session(request: Request, response: Response) -> None:
    """Signs the browser out: its cookie is worth nothing from now on, whoever has a copy. Raises redis.RedisError."""
    cookie = request.cookies.get(cookie_name(request.url.scheme == "https"))
    sessions = _sessions(request)
    if cookie and len(cookie) <= MAX_COOKIE_LENGTH:
        await run_in_threadpool(sessions.load_secret)
        if sessions.open(cookie) is not None:  # so that nobody fills the list with what never was one
            await request.app.state.keyring.end_session(cookie, sessions.seconds)
    _set_cookie(request, response, "", 0)


def csrf_token(request: Request) -> str:
    """What the page has to send as ``X-CSRF-Token`` with every change; empty without a session, when none is asked."""
    session: Session | None = getattr(request.state, "session", None)
    return session.csrf_token if session else ""


def _set_cookie(request: Request, response: Response, value: str, seconds: int) -> None:
    is_secure = request.url.scheme == "https"
    # Strict: who comes by a link from elsewhere is asked to sign in or reloads once; no foreign page ever sends it.
    response.set_cookie(
        cookie_name(is_secure), value, max_age=seconds, path="/", secure=is_secure, httponly=True, samesite="strict"
    )


def _sessions(request: Request) -> Sessions:
    return cast(Sessions, request.app.state.sessions)
