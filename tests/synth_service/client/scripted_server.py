"""A server that answers as it is told and notes what it was asked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.http_servers import served


class Answer(NamedTuple):
    """Status 0 is none at all: the connection is cut."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Asked(NamedTuple):
    line: str
    headers: dict[str, str]


class ScriptedServer:
    def __init__(self, answers: list[Answer]) -> None:
        self.asked: list[Asked] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                script.asked.append(Asked(self.requestline, {k.lower(): v for k, v in self.headers.items()}))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = answers.pop(0)
                if answer.status == 0:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)
                self.close_connection = True

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 -- names of the base class

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["ScriptedServer"]:
        with served(self._server):
            yield self
