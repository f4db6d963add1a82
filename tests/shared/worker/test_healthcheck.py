"""The container health check against a real server, a real HTTP listener and as the command that images run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from shared.broker import Broker
from shared.worker.healthcheck import FRESH_SECONDS, complaint_about_api, complaint_about_worker
from tests.conftest import free_port
from tests.http_servers import served

HOST = socket.gethostname()


@contextmanager
def listener(status: int) -> Iterator[int]:
    """Answers every request with one status; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"code": "redis_unavailable"}' if self.path == "/readyz" else b""
            self.send_response(status if self.path == "/readyz" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    with served(server):
        yield server.server_port


@pytest.fixture
def register(broker: Broker) -> Callable[[str, float], None]:
    """Tells Redis of a worker of a host, last heard of some seconds ago."""

    def tell(host: str, seconds_ago: float) -> None:
        fields: dict[str, str | int | float] = {"role": "synthesis", "pid": 7, "at": time.time() - seconds_ago}
        broker.workers.register(f"synthesis-{host}-7", fields, ttl_seconds=60)

    return tell


def test_a_ready_api_is_healthy() -> None:
    with listener(200) as port:
        assert complaint_about_api(f"http://127.0.0.1:{port}") is None


def test_an_api_that_is_not_ready_is_not_healthy_and_says_why() -> None:
    with listener(503) as port:
        assert "redis_unavailable" in (complaint_about_api(f"http://127.0.0.1:{port}") or "")


def test_an_api_that_does_not_listen_is_not_healthy() -> None:
    assert "does not answer" in (complaint_about_api(f"http://127.0.0.1:{free_port()}") or "")


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with listener(200) as port:
        assert complaint_about_api(f"http://127.0.0.1:{port}") is None


def test_a_worker_that_was_heard_of_is_healthy(redis_url: str, register: Callable[[str, float], None]) -> None:
    register(HOST, 1)
    assert complaint_about_worker(redis_url, HOST) is None


def test_a_silent_worker_is_not_healthy(redis_url: str, register: Callable[[str, float], None]) -> None:
    register(HOST, FRESH_SECONDS + 5)
    assert "silent for 3" in (complaint_about_worker(redis_url, HOST) or "")


def test_the_worker_of_another_host_does_not_count(redis_url: str, register: Callable[[str, float], None]) -> None:
    register(f"{HOST}-7", 1)
    register(f"another-{HOST}", 1)
    assert "no worker" in (complaint_about_worker(redis_url, HOST) or "")


def test_a_worker_without_a_server_is_not_healthy() -> None:
    assert "Redis" in (complaint_about_worker(f"redis://127.0.0.1:{free_port()}", HOST) or "")
    assert "REDIS_URL" in (complaint_about_worker(None, HOST) or "")


def test_the_command_answers_with_its_exit_code(redis_url: str, register: Callable[[str, float], None]) -> None:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shared.worker.healthcheck", *arguments]
        return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)

    assert run("worker", DFKD_REDIS_URL=redis_url).returncode == 1
    register(HOST, 1)
    assert run("worker", DFKD_REDIS_URL=redis_url).returncode == 0
    with listener(200) as port:
        assert run("api", DFKD_PORT=str(port)).returncode == 0
    assert "usage" in run("everything").stderr


def test_the_check_imports_nothing_heavy() -> None:
    code = (
        "import sys, shared.worker.healthcheck; assert 'redis' not in sys.modules; "
        "import shared.broker, shared.settings; "
        "assert not {'torch', 'numpy', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
