"""The server's side of a connection, with limits on everything that a client may send beside a body that is read.

uvicorn limits neither the length of a request's head nor what comes after its body, and waits for both as long as the
client likes. All of it arrives before or whether or not a key is checked. So here a head has a length and a time,
trailers are dropped, the framing of a body counts against a limit, a body has to arrive at some speed, few requests
may wait in a pipeline, and a connection whose answer ends before its request is closed.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_SECONDS: Final = 20.0
"""From the connection, or the first byte of a later request, to the end of the head."""

BODY_SECONDS: Final = 30.0
SLOWEST_BYTES_PER_SECOND: Final = 4_096
"""A body may take ``BODY_SECONDS`` and a second more for so many bytes of it."""

MAX_FRAMING_BYTES: Final = 64 * 1024
FRAMING_SHARE: Final = 8
"""Sizes and extensions of chunks and trailers: this many times as much as body, and ``MAX_FRAMING_BYTES`` more."""

MAX_PIPELINED: Final = 32
"""Requests that wait behind one that is being answered."""

LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 1024 * 1024
"""What is read and dropped after an answer that ended before its request: closing at once would tear the answer from
a client that is still sending."""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class LimitedHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 over one connection, which ends when a request is too long, too slow or of no use any more."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_in_head = False
        self._is_in_body = self._has_met_request = False
        self._head_bytes = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._body_due = 0.0
        self._lingering_bytes: int | None = None
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Waits for the first request."""
        super().connection_made(transport)
        self._start_timeout(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cleans up."""
        self._stop_timeout()
        super().connection_lost(exc)

    # -- what the parser finds ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_head = self._has_met_request = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. One that comes after the body is none: the answer may be under way by then."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The end of its head."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser stops, and the connection ends with 400
        self._is_in_head, self._is_in_body = False, True
        self._head_bytes = 0
        self._wire_bytes = self._body_bytes = 0
        self._stop_timeout()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of it."""
        self._is_in_body = False
        self._has_met_request = True
        self._stop_timeout()
        super().on_message_complete()

    # -- the connection -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Some bytes, of which those in the same piece as the end of a head are not counted."""
        if self._lingering_bytes is not None:
            self._lingering_bytes += len(data)
            if self._lingering_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        was_in_body, self._has_met_request = self._is_in_body, False
        super().data_received(data)
        if self.transport.is_closing():
            return
        # The parser passes over line feeds before a request, as many as there are.
        is_before_head = not (was_in_body or self._is_in_body or self._has_met_request)
        if self._is_in_head or is_before_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_TOO_LARGE)
            elif self._timeout is None:
                self._start_timeout(HEAD_SECONDS)
        elif self._is_in_body:
            self._wire_bytes += len(data) if was_in_body else 0
            if self._wire_bytes - self._body_bytes > MAX_FRAMING_BYTES + FRAMING_SHARE * self._body_bytes:
                self._refuse(_TOO_LARGE)
            elif self._timeout is None:
                self._body_due = self.loop.time() + BODY_SECONDS
                self._timeout = self.loop.call_later(BODY_SECONDS, self._check_speed)

    def on_response_complete(self) -> None:
        """An answer has been sent. Nobody reads what its request still brings."""
        super().on_response_complete()
        if self._is_in_body and not self.pipeline and not self.transport.is_closing():
            self._lingering_bytes = 0
            self._stop_timeout()
            self._unset_keepalive_if_required()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._start_timeout(LINGER_SECONDS)

    def _check_speed(self) -> None:
        """Ends a request whose body comes too slowly. Time in which the application did not read is not counted."""
        self._timeout = None
        if self.flow.read_paused:
            self._body_due += BODY_SECONDS
        left = self._body_due + self._body_bytes / SLOWEST_BYTES_PER_SECOND - self.loop.time()
        if left <= 0:
            self._refuse(_TOO_SLOW)
        else:
            self._timeout = self.loop.call_later(min(left, BODY_SECONDS), self._check_speed)

    def _refuse(self, answer: bytes) -> None:
        """Closes, with an answer if none has begun."""
        if self.cycle is None or self.cycle.response_complete or not (self._is_in_head or self.cycle.response_started):
            self.transport.write(answer)
        self.transport.close()

    def _start_timeout(self, seconds: float) -> None:
        self._timeout = self.loop.call_later(seconds, self.transport.close)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
