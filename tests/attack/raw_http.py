"""Hostile bytes on a connection: what comes before, beside and after requests. None of it needs a key."""

from __future__ import annotations

import socket
import time
from typing import Final, NamedTuple

POST: Final = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MOST_BYTES: Final = 50_000_000


class Conversation(NamedTuple):
    """What a client says: once, and then again and again up to ``MOST_BYTES``."""

    begin: bytes
    piece: bytes = b""
    pause_seconds: float = 0.0


def conversations() -> dict[str, Conversation]:
    """All of them by what they are. Those with pauses take as long as the service lets them."""
    get = b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n"
    return {
        "trailers without end": Conversation(CHUNKED + b"0\r\n", b"X-Trailer: " + b"a" * 1000 + b"\r\n"),
        "a trailer without end": Conversation(CHUNKED + b"0\r\nX-Trailer: ", b"a" * 1000),
        "chunk extensions without end": Conversation(CHUNKED + b"2;x=", b"a" * 1000),
        "chunks of one byte": Conversation(CHUNKED, b"1;" + b"a" * 100 + b"\r\n{\r\n"),
        "a chunk of sixteen exabytes": Conversation(CHUNKED + b"ffffffffffffffff\r\n", b"a" * 1000),
        "a chunk of a negative size": Conversation(CHUNKED + b"-1\r\n"),
        "a body without end": Conversation(CHUNKED, b"3e8\r\n" + b" " * 1000 + b"\r\n"),
        "a body of an exabyte": Conversation(POST + b"Content-Length: 1152921504606846976\r\n\r\n", b" " * 1000),
        "a body of a negative length": Conversation(POST + b"Content-Length: -1\r\n\r\n"),
        "two lengths": Conversation(POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
        "a length and chunks": Conversation(POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "headers without end": Conversation(get, b"X-Many: a\r\n"),
        "a header without end": Conversation(get + b"X-One: ", b"a" * 1000),
        "a path without end": Conversation(b"GET /", b"a" * 1000),
        "a method without end": Conversation(b"G", b"A" * 1000),
        "requests without end": Conversation(b"", (get + b"\r\n") * 20),
        "uploads without end": Conversation(b"", b"POST /models HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 20),
        "no HTTP": Conversation(b"\x16\x03\x01\x02\x00" + bytes(500)),
        "HTTP/2": Conversation(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100)),
        "an upgrade": Conversation(get + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", bytes(1000)),
        "line feeds": Conversation(b"\r\n", b"\r\n" * 500),
        "a line folded": Conversation(get + b"X-A: b\r\n c\r\n\r\n"),
        "a header with a zero": Conversation(get + b"X-A: \0\r\n\r\n"),
        "a host of a thousand characters": Conversation(b"GET /jobs HTTP/1.1\r\nHost: " + b"a" * 1000 + b"\r\n\r\n"),
        "a path of escapes": Conversation(b"GET /jobs/" + b"%00%2e%2e%2f" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        "a key of ten kilobytes": Conversation(get + b"X-API-Key: " + b"k" * 10_000 + b"\r\n\r\n"),
        "a thousand cookies": Conversation(get + b"Cookie: " + b"dfkd_session=a; " * 1000 + b"\r\n\r\n"),
        "a key as trailer": Conversation(CHUNKED + b"2\r\n{}\r\n0\r\nX-API-Key: attacker\r\n\r\n"),
        "a head that trickles": Conversation(get, b"X-A: b\r\n", 1.0),
        "a body that trickles": Conversation(POST + b"Content-Length: 100000\r\n\r\n", b" ", 1.0),
        "nothing at all": Conversation(b"", b"", 60.0),
    }


def converse(port: int, said: Conversation, *, most_seconds: float) -> tuple[str, float]:
    """What came of it, and the seconds until the first byte of an answer (0 when none came).

    Returns ``refused`` when the service answered with an error or hung up, ``served`` when it answered otherwise, and
    ``endless`` when it was still listening at the end.
    """
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(said.begin)
            sent = len(said.begin)
            connection.settimeout(said.pause_seconds or 0.001)
            while said.piece and sent < MOST_BYTES and time.monotonic() - started < most_seconds:
                block = said.piece if said.pause_seconds else said.piece * max(1, 100_000 // len(said.piece))
                connection.settimeout(5)
                connection.sendall(block)
                sent += len(block)
                connection.settimeout(said.pause_seconds or 0.001)
                try:
                    if answer := connection.recv(4096):
                        break
                    return "refused", 0.0
                except TimeoutError:
                    continue
            else:
                connection.settimeout(max(1.0, most_seconds - (time.monotonic() - started)))
                asked = time.monotonic()
                answer = connection.recv(4096)
                return _judged(answer), time.monotonic() - asked if answer else 0.0
            return _judged(answer), 0.0
        except TimeoutError:
            return "endless", 0.0
        except OSError:
            return "refused", 0.0


def _judged(answer: bytes) -> str:
    return "served" if answer.startswith(b"HTTP/1.1 2") else "refused"
