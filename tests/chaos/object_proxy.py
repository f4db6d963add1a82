"""An HTTP proxy between the processes and their object store, which fails in the ways that object stores fail.

A process that asks through it meets real sockets: refused, hung, reset in the middle of a body, answered with an error
or with too little. What the store itself holds is never touched; whoever asks it directly meets no trouble.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.conftest import free_port

LONGEST_DELAY_SECONDS: Final = 20.0
"""Of an answer that is late; a client has long given up by then."""

PASSED_BY_HAND: Final = {"connection", "content-length", "date", "expect", "server", "transfer-encoding"}
"""Headers that each hop writes by itself."""


class Trouble(Enum):
    """What may become of a request."""

    HANG = auto()
    """Nothing is read or answered before the end; then it is carried out, late."""
    DELAY = auto()
    """It is carried out at once, and answered late."""
    SLOW_DOWN = auto()
    """503 SlowDown."""
    FAIL = auto()
    """500 InternalError."""
    DENY = auto()
    """403 AccessDenied."""
    UNKNOWN_KEY = auto()
    """403 InvalidAccessKeyId."""
    RESET_UPLOAD = auto()
    """The connection is reset in the middle of the body that is sent."""
    RESET_DOWNLOAD = auto()
    """The connection is reset in the middle of the body that is received."""
    TRUNCATE = auto()
    """The body that is received ends early, in good order."""
    KEEP_OBJECTS = auto()
    """What is to be deleted together is kept, as the answer, 200, says in its body."""
    LOSE_ANSWER = auto()
    """A write is carried out, and the connection is reset in place of an answer."""


ERRORS: Final = {
    Trouble.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Trouble.FAIL: (500, "InternalError", "We encountered an internal error. Please try again."),
    Trouble.DENY: (403, "AccessDenied", "Access Denied"),
    Trouble.UNKNOWN_KEY: (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."),
}


class ObjectProxy:
    """Forwards requests to a local port until told otherwise. Threads; ``close`` ends them all.

    Args:
        target_port: of the store.
        choice: of the requests that are struck where not all are.
    """

    def __init__(self, target_port: int, choice: random.Random) -> None:
        self.port = free_port()
        self.target_port = target_port
        self._random = choice
        self._troubles: tuple[Trouble, ...] = ()
        self._share = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server: _Server | None = None
        self.restore()

    def cut(self) -> None:
        """Drops every connection and refuses new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.drop_connections()

    def strike(self, *troubles: Trouble, share: float = 1.0) -> None:
        """From now on, lets one of these troubles befall a share of the requests."""
        self._over.clear()
        self._troubles, self._share = troubles, share

    def restore(self) -> None:
        """Forwards again. What was held back goes on now."""
        self._troubles = ()
        self._over.set()
        if self._server is None:
            self._server = _Server(self)
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Ends all connections."""
        self._over.set()
        self.cut()

    def trouble(self) -> Trouble | None:
        """What befalls the next request."""
        with self._lock:
            if not self._troubles or self._random.random() >= self._share:
                return None
            return self._random.choice(self._troubles)

    def wait_for_the_end(self, seconds: float | None = None) -> None:
        """Returns when the trouble is over, or after so many seconds."""
        self._over.wait(seconds)

    def delay_seconds(self) -> float:
        """Of one answer."""
        with self._lock:
            return self._random.uniform(1.0, LONGEST_DELAY_SECONDS)


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, proxy: ObjectProxy) -> None:
        self.proxy = proxy
        self._sockets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", proxy.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes without a farewell: one that lingers for no time is reset that way."""
        self._sockets.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that are gone and connections that are cut are what this is for."""

    def drop_connections(self) -> None:
        for each in list(self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        proxy = self.server.proxy
        trouble = proxy.trouble()
        if trouble is Trouble.HANG:
            proxy.wait_for_the_end()
        if trouble is Trouble.RESET_UPLOAD and self._length() > 1:
            self.rfile.read(self._length() // 2)
            return self._reset()
        body = self._body()
        if trouble in ERRORS:
            return self._refuse(*ERRORS[trouble])
        if trouble is Trouble.KEEP_OBJECTS and self.command == "POST" and self.path.endswith("?delete"):
            return self._refuse_in_the_body(body)
        status, headers, content = self._ask_the_store(body)
        if trouble is Trouble.LOSE_ANSWER and self.command in ("PUT", "POST", "DELETE"):
            return self._reset()
        if trouble is Trouble.DELAY:
            proxy.wait_for_the_end(proxy.delay_seconds())
        is_short = trouble in (Trouble.RESET_DOWNLOAD, Trouble.TRUNCATE) and len(content) > 1
        self._answer(status, headers, content, sent=len(content) // 2 if is_short else len(content))
        if is_short:
            self.close_connection = True
            if trouble is Trouble.RESET_DOWNLOAD:
                self._reset()
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 -- the library calls them so

    def _length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(self._length())
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _ask_the_store(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in PASSED_BY_HAND}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.target_port, timeout=60)
        try:
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            kept = [each for each in response.getheaders() if each[0].lower() not in PASSED_BY_HAND]
            content = response.read()
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            return response.status, [*kept, *([("Content-Length", length)] if length else [])], content
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, sent: int) -> None:
        self.send_response(status)
        for name, value in headers:
            if not (status == http.HTTPStatus.NO_CONTENT and name == "Content-Length"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:sent])

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
        self._answer(status, headers, content, sent=0 if self.command == "HEAD" else len(content))

    def _refuse_in_the_body(self, body: bytes) -> None:
        keys = re.findall(rb"<Key>.*?</Key>", body, re.DOTALL)
        errors = b"".join(b"<Error>%s<Code>SlowDown</Code><Message>no</Message></Error>" % key for key in keys)
        content = b"<?xml version='1.0'?><DeleteResult>%s</DeleteResult>" % errors
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
        self._answer(200, headers, content, sent=len(content))

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    log_message: Callable[..., None] = lambda *_: None
