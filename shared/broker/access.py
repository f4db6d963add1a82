"""Who may use the service, as far as that changes while it runs: keys that were made, keys and sign-ins that ended.

Every API process keeps a copy and asks for the version now and then; a new one is fetched whole, since there are few.
Revoking and signing out work on a server that is full.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final, NamedTuple

from pydantic import SecretStr

from shared.api_keys import Allowance, ApiKey, Scope
from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import script

MAX_KEYS: Final = 1_000


@script("""
if redis.call('HLEN', stored) >= most then return 'full' end
redis.call('HSET', stored, fingerprint, record)
redis.call('INCR', version)
return 'ok'
""")
def _add(*, stored: Key, version: Key, fingerprint: str, record: str, most: int) -> str: ...


@script(
    """
redis.call('HDEL', stored, fingerprint)
local is_new = redis.call('HSETNX', revoked, fingerprint, moment)
redis.call('INCR', version)
return is_new
""",
    even_when_full=True,
)
def _revoke(*, stored: Key, revoked: Key, version: Key, fingerprint: str, moment: str) -> int: ...


@script(
    """
redis.call('ZREMRANGEBYSCORE', sessions, '-inf', now_is)
redis.call('ZADD', sessions, until_then, digest)
redis.call('INCR', version)
""",
    even_when_full=True,
)
def _end_session(
    *, unused: Key, sessions: Key, version: Key, digest: str, now_is: float, until_then: float
) -> None: ...


class AccessList(NamedTuple):
    """What is known at one moment.

    Attributes:
        version: of all that follows.
        keys: made while the service runs.
        revoked: fingerprints of keys, also of configured ones.
        ended_sessions: digests.
    """

    version: str
    keys: tuple[ApiKey, ...]
    revoked: frozenset[str]
    ended_sessions: frozenset[str]


class Access:
    """Keys and sign-ins as all API processes see them."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def version(self) -> str:
        """Changes with anything below, in one round trip."""
        return self._redis.get(keys.ACCESS_VERSION) or "0"

    def read(self) -> AccessList:
        """All of it, in one round trip."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.get(keys.ACCESS_VERSION)
            pipeline.hvals(keys.ACCESS_KEYS)
            pipeline.hkeys(keys.ACCESS_REVOKED)
            pipeline.zrangebyscore(keys.ACCESS_SESSIONS, time.time(), "+inf")
            version, records, revoked, sessions = pipeline.execute()
        return AccessList(version or "0", tuple(map(_from_json, records)), frozenset(revoked), frozenset(sessions))

    def add_key(self, key: ApiKey) -> bool:
        """Lets a key in from now on. False when there are ``MAX_KEYS`` already."""
        outcome = _add(
            self._redis,
            stored=keys.ACCESS_KEYS,
            version=keys.ACCESS_VERSION,
            fingerprint=key.fingerprint,
            record=_to_json(key),
            most=MAX_KEYS,
        )
        return outcome == "ok"

    def revoke_key(self, fingerprint: str) -> None:
        """Ends a key, made or configured, with its sign-ins."""
        _revoke(
            self._redis,
            stored=keys.ACCESS_KEYS,
            revoked=keys.ACCESS_REVOKED,
            version=keys.ACCESS_VERSION,
            fingerprint=fingerprint,
            moment=f"{time.time():.3f}",
        )

    def end_session(self, digest: str, *, seconds: float) -> None:
        """Ends a sign-in that would have lasted for so long at most."""
        _end_session(
            self._redis,
            unused=keys.ACCESS_KEYS,
            sessions=keys.ACCESS_SESSIONS,
            version=keys.ACCESS_VERSION,
            digest=digest,
            now_is=time.time(),
            until_then=time.time() + seconds,
        )


def _to_json(key: ApiKey) -> str:
    return json.dumps(
        {
            "name": key.name,
            "digest": key.digest.get_secret_value(),
            "scopes": sorted(key.scopes),
            "expires_at": key.expires_at,
            "allowance": key.allowance.model_dump(),
        }
    )


def _from_json(text: str) -> ApiKey:
    fields: dict[str, Any] = json.loads(text)
    return ApiKey(
        name=fields["name"],
        digest=SecretStr(fields["digest"]),
        scopes=frozenset(Scope(each) for each in fields["scopes"]),
        expires_at=fields["expires_at"],
        allowance=Allowance(**fields["allowance"]),
    )
