"""API keys as a deployment lists them: a name and the SHA-256 of the key, never the key itself.

A key is 256 random bits, so a fast hash is enough: there is nothing to guess. Two keys may share a name;
that is how one is replaced without a moment at which neither works.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, SecretStr

MIN_KEY_LENGTH: Final = 16
"""Shorter ones, which people make up, could be guessed from their hash."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)
_PLAIN = re.compile(rf"[!-~]{{{MIN_KEY_LENGTH},256}}", re.ASCII)
_FORMS = "write name:sha256:HEX or name:KEY, several separated by commas"


class ApiKey(BaseModel):
    """One key that the API accepts."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    digest: SecretStr
    """SHA-256 of the key, in hexadecimal."""

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


def new_api_key(name: str = "default") -> tuple[str, str]:
    """A new key and what to add to ``DFKD_API_KEYS`` for it. The key itself is shown once and kept nowhere.

    Raises:
        ValueError: the name cannot be one.
    """
    _check_name(name, "the name")
    key = f"dfkd_{secrets.token_urlsafe(32)}"
    return key, f"{name}:sha256:{digest_of(key)}"


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
        digest = key.removeprefix("sha256:")
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{which}: after sha256: come the 64 hexadecimal digits of the key's SHA-256")
        return ApiKey(name=name, digest=SecretStr(digest.lower()))
    if not _PLAIN.fullmatch(key):
        raise ValueError(
            f"{which}: a key has {MIN_KEY_LENGTH} to 256 visible ASCII characters and no comma; "
            "`dfkd key NAME` makes a good one"
        )
    return ApiKey(name=name, digest=SecretStr(digest_of(key)))


def _check_name(name: str, which: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{which} is not made of up to 64 letters, digits, dots, hyphens and underscores; {_FORMS}")
