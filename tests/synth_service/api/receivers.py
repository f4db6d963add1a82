"""An HTTP server that receives webhooks and answers as a test wants."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.http_servers import served

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came, and what is answered: ``answers`` in their order, the last one from then on."""

    port: int
    answers: list[Answer]
    received: list[Received] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over."""

    @property
    def host(self) -> str:
        """As an operator lists it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As a job names it; the token is a secret."""
        return f"http://{self.host}/hook?token=swordfish"


def status(code: int, **headers: str) -> Answer:
    """Answers with a status and no body."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@contextmanager
def receiving(*answers: Answer) -> Iterator[Receiver]:
    """Listens until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.received.append(Received(self.path, dict(self.headers.items()), body))
            answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            self.close_connection = True
            answer(self)

        def do_GET(self) -> None:
            receiver.received.append(Received(self.path, dict(self.headers.items()), b""))
            status(200)(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass  # the sender has closed the connection, as it may

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_port, list(answers) or [status(200)])
    with served(server):
        try:
            yield receiver
        finally:
            receiver.ended.set()
