"""What the shell's proxy and certificate variables mean for one address.

httpx would read them itself, but it fails on what other tools take (IPv6 networks in ``NO_PROXY``, a proxy for another
scheme that it cannot speak) and asks a proxy for this very machine. A client talks to one address, so what counts for
it is settled once: loopback never goes through a proxy, and what cannot work is said with the variable's name.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import httpx


@dataclass(frozen=True)
class Route:
    """How to reach an address.

    Attributes:
        proxy: to ask; None for none.
        certificates: what to check the other side with; False where nothing is encrypted.
    """

    proxy: httpx.Proxy | None
    certificates: ssl.SSLContext | bool


def route_to(url: str) -> Route:
    """How the environment says to reach an address.

    Raises:
        ValueError: a variable that counts for it cannot be used; the message names it.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        return Route(None, False)  # whoever sends says what is wrong with it
    return Route(_proxy(address.scheme, address.host, address.port), _certificates(address.scheme))


def _proxy(scheme: str, host: str, port: int | None) -> httpx.Proxy | None:
    proxies = getproxies_environment()
    if is_loopback(host) or _is_excepted(host, port, proxies.get("no", "")):
        return None
    kind = scheme if proxies.get(scheme) else "all"
    if not (given := proxies.get(kind)):
        return None
    variable = f"{kind.upper()}_PROXY"
    if given.startswith("socks") and not _speaks_socks():
        raise ValueError(f"{variable} is a SOCKS proxy, for which the package socksio is needed: pip install socksio")
    written = given if "://" in given else f"http://{given}"
    try:
        if not urlsplit(written).hostname:
            raise ValueError("no host")
        return httpx.Proxy(written)
    except (httpx.InvalidURL, ValueError):
        # The value may hold a password.
        raise ValueError(f"{variable} is no proxy address; write http://host:port, or unset it") from None


def _certificates(scheme: str) -> ssl.SSLContext | bool:
    if scheme != "https":
        return False
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        path = os.environ.get(variable)
        if path and not os.path.exists(path):  # noqa: PTH110 -- a path of the user's, told as it was written
            raise ValueError(f"{variable} names {path}, which is not there; correct or unset it")
    try:
        return httpx.create_ssl_context()
    except (OSError, ValueError) as error:
        raise ValueError(f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error})") from error


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    """Whether ``NO_PROXY`` names a host: by itself, by its domain, by a network, or with its port."""
    name = host.strip("[]").lower()
    for given in exceptions.lower().split(","):
        entry = given.strip()
        if entry == "*":
            return True
        if _network_has(entry.strip("[]"), name):
            return True
        plain, _, suffix = entry.rpartition(":")
        if suffix.isdigit() and plain and ("]" in plain or ":" not in plain):
            if int(suffix) != port:
                continue
            entry = plain
        entry = entry.strip("[]").removeprefix("*").removeprefix(".")
        if entry and (name == entry or name.endswith(f".{entry}")):
            return True
    return False


def _network_has(entry: str, name: str) -> bool:
    try:
        return ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _speaks_socks() -> bool:
    return find_spec("socksio") is not None
