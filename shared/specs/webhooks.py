"""Addresses that want to hear of a job's end, and which of them a deployment sends to.

What a job may name is narrow on purpose, so that whoever reads an address, now or when it is sent to, reads the same
host out of it. An address may hold a token in its path or query: messages and logs name its host alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

MAX_LENGTH: Final = 2000

_HOST: Final = r"[a-z0-9][a-z0-9._-]*|\[[0-9a-f:.]+\]"
_ADDRESS = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?(?:[/?][!-~]*)?", re.I)
_ALLOWED = re.compile(rf"(?:{_HOST})(?::[0-9]{{1,5}})?")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


def _checked(url: str) -> str:
    authority = re.split(r"[/?#\\]", url.partition("://")[2], maxsplit=1)[0]
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise _invalid("must begin with https:// or http://")
    if "@" in authority:
        raise _invalid("must hold no user or password; put a token into its path or query")
    if "#" in url:
        raise _invalid("must hold no fragment, which is never sent; leave out # and what follows")
    found = _ADDRESS.fullmatch(url)
    if found is None or "\\" in url:
        raise _invalid("must look like https://example.org/hook; percent-encode spaces, \\ and all that is not ASCII")
    if found["port"] and not 0 < int(found["port"]) < 65536:
        raise _invalid(f"must have a port from 1 to 65535; it is {found['port']}")
    return url


def _invalid(message: str) -> PydanticCustomError:
    return PydanticCustomError("webhook", "{message}", {"message": message})


WebhookAddress = Annotated[str, StringConstraints(max_length=MAX_LENGTH), AfterValidator(_checked)]


def receiver_of(url: str) -> str:
    """``host:port`` of a valid address, which says who is told and no secret."""
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise ValueError("no address that a job may name")
    return f"{found['host'].lower()}:{int(found['port'] or _DEFAULT_PORTS[found['scheme'].lower()])}"


def is_allowed(url: str, allowed: Collection[str]) -> bool:
    """Whether a deployment sends to a valid address.

    Args:
        url: that a job names.
        allowed: ``host:port`` for this port, or ``host`` for the usual one of https and http; in lower case.
    """
    receiver = receiver_of(url)
    host, _, port = receiver.rpartition(":")
    scheme = url.partition(":")[0].lower()
    return receiver in allowed or (int(port) == _DEFAULT_PORTS[scheme] and host in allowed)


def is_receiver(text: str) -> bool:
    """Whether this is a ``host`` or ``host:port``, in lower case, as a deployment lists them."""
    return _ALLOWED.fullmatch(text) is not None
