"""The keys that count now: those of the settings and those made since, without the expired and the revoked.

A copy in this process, renewed at most once a second by whoever asks. While Redis is away the copy goes on counting:
configured keys work, and what was revoked before stays revoked. Before there is a first copy nobody is let in, since a
process that has just started cannot know which keys and sign-ins have ended.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import Final

import anyio
import redis
import structlog
from fastapi.concurrency import run_in_threadpool

from shared.api_keys import ApiKey, find_key
from shared.broker.access import Access, AccessList

logger = structlog.get_logger()

RENEWAL_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 0.5
"""Longest that a request waits for a newer copy than there is."""

FIRST_PATIENCE_SECONDS: Final = 5.0
"""Longest that a request waits for the first copy."""

_NOTHING: Final = AccessList("", (), frozenset(), frozenset())


class Keyring:
    """Who is let in.

    Args:
        configured: keys of the settings.
        access: what changes while the service runs; None for nothing.
    """

    def __init__(self, configured: Sequence[ApiKey], access: Access | None = None) -> None:
        self._configured = tuple(configured)
        self._access = access
        self._known = _NOTHING
        self._renewed_at = float("-inf")
        self._is_renewing = False
        self._reading = threading.Lock()

    @property
    def is_known(self) -> bool:
        """Whether there is a copy, so that who shows a key or a session can be told from who once could."""
        return self._access is None or self._known is not _NOTHING

    async def renew(self) -> bool:
        """Makes the copy as new as it has to be, as far as Redis answers in time. Returns ``is_known``."""
        if self._access is None:
            return True
        patience = PATIENCE_SECONDS if self.is_known else FIRST_PATIENCE_SECONDS
        with anyio.move_on_after(patience):
            while self._is_renewing and not self.is_known:
                await anyio.sleep(0.01)
        if self._is_renewing or time.monotonic() - self._renewed_at < RENEWAL_SECONDS:
            return self.is_known
        self._is_renewing = True
        try:
            with anyio.move_on_after(patience):
                await anyio.to_thread.run_sync(self.renew_now, abandon_on_cancel=True)
        finally:
            self._is_renewing = False
            self._renewed_at = time.monotonic()
        return self.is_known

    def renew_now(self) -> None:
        """Fetches what has changed. May block."""
        assert self._access is not None
        with self._reading:  # a slow reader must not put an older copy in the place of a newer one
            try:
                if self._access.version() != self._known.version:
                    self._known = self._access.read()
            except redis.RedisError as error:
                logger.warning("access_list_not_renewed", error=str(error))

    def all(self) -> list[ApiKey]:
        """Every key that counts."""
        return [
            key
            for key in (*self._configured, *self._known.keys)
            if key.fingerprint not in self._known.revoked and not key.has_expired
        ]

    def find(self, presented: str) -> ApiKey | None:
        """The key that was presented, if it is one."""
        return find_key(presented, self.all())

    def of_session(self, name: str, fingerprint: str, cookie: str) -> ApiKey | None:
        """The key that a sign-in was made with, unless it or the sign-in has ended."""
        if session_digest(cookie) in self._known.ended_sessions:
            return None
        return next((key for key in self.all() if (key.name, key.fingerprint) == (name, fingerprint)), None)

    async def end_session(self, cookie: str, seconds: float) -> None:
        """Ends a sign-in everywhere. Raises redis.RedisError."""
        if self._access is not None:
            await run_in_threadpool(self._access.end_session, session_digest(cookie), seconds=seconds)
            await run_in_threadpool(self.renew_now)

    def add(self, key: ApiKey) -> bool:
        """Lets a key in. False when there are too many. Raises redis.RedisError."""
        assert self._access is not None
        added = self._access.add_key(key)
        self.renew_now()
        return added

    def revoke(self, fingerprint: str) -> None:
        """Ends a key. Raises redis.RedisError."""
        assert self._access is not None
        self._access.revoke_key(fingerprint)
        self.renew_now()


def session_digest(cookie: str) -> str:
    """Stands for a cookie where the cookie itself should not be kept."""
    return hashlib.sha256(cookie.encode(errors="surrogatepass")).hexdigest()[:32]
