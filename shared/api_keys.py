"""API keys as a deployment lists them: a name and the SHA-256 of the key, never the key itself.

A key is 256 random bits, so a fast hash is enough: there is nothing to guess. Two keys may share a name;
that is how one is replaced without a moment at which neither works. What a key may do (``scopes``), until when, and how
much its owner may have at a time are written behind its hash:

    ci:sha256:HEX;scopes=read+submit;expires=2027-01-31;queued-jobs=5;running-jobs=2;bytes=50000000000
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr

MIN_KEY_LENGTH: Final = 16
"""Shorter ones, which people make up, could be guessed from their hash."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)
_PLAIN = re.compile(rf"[!-~]{{{MIN_KEY_LENGTH},256}}", re.ASCII)
_FORMS = "write name:sha256:HEX or name:KEY, several separated by commas"
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


class Scope(StrEnum):
    """What a key may do."""

    READ = "read"
    """See jobs, models and what they made."""
    SUBMIT = "submit"
    """Start, cancel, retry and delete jobs; upload and delete models."""
    METRICS = "metrics"
    """Read ``GET /metrics``."""
    ADMIN = "admin"
    """Make and revoke keys, and see everybody's jobs where others see their own."""


DEFAULT_SCOPES: Final = frozenset({Scope.READ, Scope.SUBMIT, Scope.METRICS})
"""Of a key that names none."""


class Allowance(BaseModel):
    """How much the owner of a key may have at a time. None: as much as there is."""

    model_config = ConfigDict(frozen=True)

    queued_jobs: int | None = Field(None, ge=0, description="Jobs that wait for a worker.")
    running_jobs: int | None = Field(None, ge=0, description="Jobs that workers work on.")
    bytes: int | None = Field(None, ge=0, description="Bytes of uploaded checkpoints and of datasets.")

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to hold somebody to."""
        return self != Allowance()

    def or_else(self, other: "Allowance") -> "Allowance":
        """This one, with the other's limits where it has none."""
        mine = self.model_dump(exclude_none=True)
        return Allowance(**other.model_dump() | mine)


class ApiKey(BaseModel):
    """One key that the API accepts."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    digest: SecretStr
    """SHA-256 of the key, in hexadecimal."""
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    expires_at: float | None = None
    """Unix time."""
    allowance: Allowance = Allowance()

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and time.time() >= self.expires_at

    @property
    def fingerprint(self) -> str:
        """Tells the keys of one name apart and says nothing about them."""
        return digest_of(self.digest.get_secret_value())[:16]


def digest_of(key: str) -> str:
    """SHA-256 in hexadecimal. Whatever cannot be encoded is no key either, but has a digest."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def find_key(presented: str, keys: Sequence[ApiKey]) -> ApiKey | None:
    """The key that was presented, if it is one. Takes the same time whichever it is, and if it is none."""
    digest = digest_of(presented)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest.get_secret_value(), digest):
            found = key
    return found


def new_api_key(name: str = "default", options: Sequence[str] = ()) -> tuple[str, str]:
    """A new key and what to add to ``DFKD_API_KEYS`` for it. The key itself is shown once and kept nowhere.

    Args:
        name: whose key it is.
        options: as they are written behind the hash, such as ``scopes=read``.

    Raises:
        ValueError: the name cannot be one, or an option is none.
    """
    _check_name(name, "the name")
    key = f"dfkd_{secrets.token_urlsafe(32)}"
    entry = ";".join([f"{name}:sha256:{digest_of(key)}", *options])
    _parse(entry, "the key")
    return key, entry


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """The keys of a comma-separated list. Plain ones are hashed here and then forgotten.

    Raises:
        ValueError: says which entry cannot be used and why, without repeating any of it.
    """
    entries = [entry.strip() for entry in text.split(",")]
    return tuple(_parse(entry, f"entry {number}") for number, entry in enumerate(entries, 1) if entry)


def _parse(entry: str, which: str) -> ApiKey:
    name, colon, key = entry.partition(":")
    if not colon:
        raise ValueError(f"{which} has no name; {_FORMS}")
    _check_name(name, f"the name of {which}")
    if key.startswith("sha256:"):
        digest, *options = key.removeprefix("sha256:").split(";")
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{which}: after sha256: come the 64 hexadecimal digits of the key's SHA-256")
        return _with_options(ApiKey(name=name, digest=SecretStr(digest.lower())), options, which)
    if not _PLAIN.fullmatch(key):
        raise ValueError(
            f"{which}: a key has {MIN_KEY_LENGTH} to 256 visible ASCII characters and no comma; "
            "`dfkd key NAME` makes a good one"
        )
    return ApiKey(name=name, digest=SecretStr(digest_of(key)))


def _check_name(name: str, which: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{which} is not made of up to 64 letters, digits, dots, hyphens and underscores; {_FORMS}")


_LIMITS: Final = {"queued-jobs": "queued_jobs", "running-jobs": "running_jobs", "bytes": "bytes"}


def _with_options(key: ApiKey, options: Sequence[str], which: str) -> ApiKey:
    changes: dict[str, object] = {}
    limits: dict[str, int] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name == "scopes":
            changes["scopes"] = parse_scopes(value.split("+"), which)
        elif name == "expires":
            changes["expires_at"] = parse_expiry(value, which)
        elif name in _LIMITS and _NUMBER.fullmatch(value):
            limits[_LIMITS[name]] = int(value)
        else:
            raise ValueError(
                f"{which}: after the hash come ;scopes=read+submit, ;expires=2027-01-31 and "
                f"{', '.join(f';{each}=NUMBER' for each in _LIMITS)}"
            )
    return key.model_copy(update={**changes, "allowance": Allowance(**limits)})


def parse_scopes(names: Sequence[str], which: str) -> frozenset[Scope]:
    """The scopes of these names. Raises ValueError for others."""
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError:
        raise ValueError(f"{which}: scopes are {', '.join(Scope)}, several joined by +") from None


def parse_expiry(text: str, which: str) -> float:
    """The end of a day, or a moment, in ISO 8601; UTC unless it says otherwise. Raises ValueError for other text."""
    try:
        moment = datetime.fromisoformat(f"{text}T23:59:59" if len(text) == 10 else text)
    except ValueError:
        raise ValueError(f"{which}: expires is a date such as 2027-01-31") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
