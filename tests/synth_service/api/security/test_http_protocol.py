import re
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import uvicorn
from fastapi import FastAPI, Request

from shared.settings import Settings
from synth_service.api.security import http_protocol
from synth_service.api.security.http_protocol import LimitedHttpProtocol
from tests.conftest import free_port
from tests.synth_service.api.running import running
from tests.waiting import wait_until

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """What the server sends until it closes."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer, which may come in several pieces: its body often does not come with its head."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _piece(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)
    while len(body) < int(length):
        body += _piece(connection)
    assert len(body) == int(length)
    return head + b"\r\n\r\n" + body


def _piece(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    assert piece, "the connection ended in the middle of an answer"
    return piece


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    """The application behind a real socket, in this process so that its limits can be lowered."""
    port = free_port()
    config = uvicorn.Config(app, port=port, log_config=None, http=LimitedHttpProtocol, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield port
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.mark.parametrize(
    "cuts",
    [[range(0, 70_000, 7_001)] * 3, [(0, 7_000), (0, 50_000)]],
    ids=["even", "a long end, a long beginning"],
)
def test_a_head_of_a_permitted_length_is_read_however_it_is_cut(
    port: int, monkeypatch: pytest.MonkeyPatch, cuts: list[Sequence[int]]
) -> None:
    head = REQUEST + b"X-Long: " + b"a" * 60_000 + b"\r\n\r\n"
    received: list[int] = []
    receive = LimitedHttpProtocol.data_received

    def counted(protocol: LimitedHttpProtocol, data: bytes) -> None:
        receive(protocol, data)
        received.append(len(data))

    monkeypatch.setattr(LimitedHttpProtocol, "data_received", counted)
    sent = 0
    with connected(port) as connection:
        for starts in cuts:  # the limit is for each request and not for the connection
            for start, end in pairwise([*starts, len(head)]):
                connection.sendall(head[start:end])
                sent += len(head[start:end])
                wait_until(lambda expected=sent: sum(received) == expected)  # type: ignore[misc]
            assert read_answer(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "piece", [b"X-Many: a\r\n" * 1_000, b"a" * 10_000], ids=["many headers", "one that does not end"]
)
def test_a_head_without_end_is_cut_off(settings: Settings, tmp_path: Path, piece: bytes) -> None:
    assert settings.redis_url is not None
    variables = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage}
    with running(tmp_path / "log", **variables) as url:
        port = int(url.rpartition(":")[2])
        (process,) = [each for each in psutil.Process().children() if _listens(each, port)]
        before = process.memory_info().rss
        with connected(port) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(REQUEST + b"X-One: " + piece * (100_000_000 // len(piece)))
        assert process.memory_info().rss - before < 50_000_000
        with connected(port) as connection:
            connection.sendall(REQUEST + b"X-One: " + b"a" * 400_000)
            answer = read_to_end(connection)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


def _listens(process: psutil.Process, port: int) -> bool:
    return any(each.laddr.port == port for each in process.net_connections("tcp") if each.status == "LISTEN")


@pytest.mark.parametrize("sent", [b"", b"GET /heal", REQUEST, REQUEST + b"\r\n" + REQUEST], ids=repr)
def test_a_head_that_takes_too_long_ends_the_connection(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.1)
    with connected(port) as connection:
        connection.sendall(sent)
        answers = read_to_end(connection)  # runs into its own timeout if the server does not close
    assert answers.count(b"HTTP/1.1 200 ") == sent.count(b"\r\n\r\n")


def test_a_connection_may_idle_between_requests_and_an_answer_may_take_its_time(
    port: int, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.05)
    answering = threading.Event()

    @app.get("/slow")
    def slow() -> bool:
        return answering.wait(0.2)

    with connected(port) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200 ")
        assert not answering.wait(0.2)
        connection.sendall(REQUEST + b"\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200 ")


JSON_POST = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n"


def endless(kind: str) -> tuple[bytes, bytes]:
    """The beginning of a request, and what goes on without end."""
    return {
        "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-Trailer: " + b"a" * 1000 + b"\r\n"),
        "a trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nX-Trailer: ", b"a" * 1000),
        "chunk extensions": (CHUNKED + b"2;x=", b"a" * 1000),
        "chunks of one byte": (CHUNKED, b"1" + b";a" * 50 + b"\r\n{\r\n"),
        "a body": (CHUNKED, b"3e8\r\n" + b" " * 1000 + b"\r\n"),
        "line feeds": (b"", b"\r\n"),
        "requests": (b"", b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 50),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["trailers", "a trailer", "chunk extensions", "chunks of one byte", "a body", "line feeds", "requests"]
)
def test_a_request_without_end_is_cut_off_and_takes_no_memory(settings: Settings, tmp_path: Path, kind: str) -> None:
    assert settings.redis_url is not None
    variables = {"REDIS_URL": settings.redis_url, "DFKD_STORAGE": settings.storage, "DFKD_API_KEYS": "a:" + "k" * 32}
    with running(tmp_path / "log", **variables) as url:
        port = int(url.rpartition(":")[2])
        (process,) = [each for each in psutil.Process().children() if _listens(each, port)]
        before = process.memory_info().rss
        begin, piece = endless(kind)
        with connected(port) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(begin + piece * (100_000_000 // len(piece)))
        assert process.memory_info().rss - before < 50_000_000


def test_an_answer_that_ends_before_its_request_reaches_the_client_and_ends_the_connection(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(CHUNKED.replace(b"/jobs", b"/nowhere") + b"2\r\n{}\r\n")
        answer = read_to_end(connection)  # runs into its own timeout if the server does not close
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_client_that_goes_on_sending_still_gets_its_answer(port: int) -> None:
    body = b"a" * 700_000
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(port) as connection:
        connection.sendall(head)
        assert select.select([connection], [], [], 10)[0], "no answer"
        connection.sendall(body)
        assert read_to_end(connection).startswith(b"HTTP/1.1 404 ")


def test_a_trailer_is_no_header(port: int, app: FastAPI) -> None:
    @app.post("/echo")
    async def echo(request: Request) -> list[str]:
        await request.body()
        return list(request.headers)

    trailing = CHUNKED.replace(b"/jobs", b"/echo") + b"2\r\n{}\r\n0\r\nX-Api-Key: forged\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(trailing)
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"x-api-key" not in answer


def test_a_body_that_comes_too_slowly_ends_the_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.2)
    with connected(port) as connection:
        connection.sendall(JSON_POST + b"Content-Length: 9\r\n\r\n{")
        assert read_to_end(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_comes_steadily_may_take_longer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.2)
    # A piece is worth five seconds, so that a machine that stops for a moment does not end the connection.
    monkeypatch.setattr(http_protocol, "SLOWEST_BYTES_PER_SECOND", 20)
    piece = b"64\r\n" + b" " * 100 + b"\r\n"
    with connected(port) as connection:
        connection.sendall(CHUNKED.replace(b"/jobs", b"/jobs:validate") + piece)
        pause = threading.Event()
        for _ in range(10):
            assert not pause.wait(0.05)
            connection.sendall(piece)
        connection.sendall(b"2\r\n{}\r\n0\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 422 ")
