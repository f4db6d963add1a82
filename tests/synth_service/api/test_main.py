"""The API as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.settings import Settings
from tests.conftest import free_port
from tests.waiting import assert_within, wait_until

HEAVY = ("torch", "torchvision", "numpy", "PIL", "webdataset", "s3fs", "botocore")


def start(**environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DFKD_", "REDIS_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "synth_service.api"],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A process that answers, its URL, and the seconds from its start to its first answer."""
    assert settings.redis_url is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Made beforehand: loading its certificates would compete with the start that is measured.
    client = httpx2.Client(base_url=url)
    started = time.perf_counter()
    process = start(REDIS_URL=settings.redis_url, DFKD_STORAGE=settings.storage, DFKD_PORT=str(port))

    def answers() -> bool:
        assert process.poll() is None, process.communicate()
        try:
            return client.get("/healthz").status_code == 200
        except httpx2.ConnectError:
            return False

    try:
        wait_until(answers)
        yield process, url, time.perf_counter() - started
    finally:
        client.close()
        process.kill()
        process.communicate()


def test_nothing_heavy_is_imported() -> None:
    code = f"import sys, synth_service.api.server; print([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def seconds_of_libraries() -> float:
    """Processor time of importing what no API of this kind goes without."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import fastapi, uvicorn, pydantic, redis"], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_it_answers_within_a_second_and_a_half_of_its_start(settings: Settings) -> None:
    with serving(settings) as (process, _url, seconds):
        spent = psutil.Process(process.pid).cpu_times()
    # On a machine that is busy with other things the wall clock tells of those; the time spent is ours alone, and on a
    # slow one everything takes longer: what the libraries alone take there says by how much.
    needed = min(seconds, spent.user + spent.system)
    assert needed < 1.5 or needed < 4 * seconds_of_libraries()


def test_sigterm_ends_it_at_once_and_in_order_although_somebody_listens(settings: Settings, job: JobRecord) -> None:
    with serving(settings) as (process, url, _):
        request = httpx2.stream("GET", f"{url}/jobs/{job.id}/events", headers={"Accept": "text/event-stream"})
        with request as stream:
            lines = stream.iter_lines()
            wait_until(lambda: next(lines).startswith("data:"))
            sent = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            list(lines)
        code, output = outcome(process)
        assert code in (0, -signal.SIGTERM)
        assert_within(time.perf_counter() - sent, 3)
        assert "Traceback" not in output


def test_it_survives_redis_going_and_coming(settings: Settings, broker: Broker) -> None:
    with serving(settings) as (_process, url, _):
        assert httpx2.get(f"{url}/readyz").status_code == 200
        # A paused server hangs rather than refuses, which is the worse of the two ways to be away.
        server = broker.redis.info("server")["process_id"]
        os.kill(server, signal.SIGSTOP)
        try:
            seconds = []

            def is_away() -> bool:
                asked = time.perf_counter()
                answer = httpx2.get(f"{url}/readyz").json()
                seconds.append(time.perf_counter() - asked)
                return bool(answer.get("code") == "redis_unavailable")

            wait_until(is_away)  # an answer may be a second old
            assert_within(max(seconds), 2.0)
            assert httpx2.get(f"{url}/healthz").status_code == 200
        finally:
            os.kill(server, signal.SIGCONT)
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 200)


def test_answers_do_not_wait_for_acknowledgements(settings: Settings) -> None:
    with serving(settings) as (_process, url, _), httpx2.Client(base_url=url) as client:

        def seconds() -> float:
            asked = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            return time.perf_counter() - asked

        # The delayed acknowledgement of Linux takes 40 ms, every time.
        assert min(seconds() for _ in range(20)) < 0.02


def test_a_port_in_use_is_one_clear_line(settings: Settings) -> None:
    assert settings.redis_url is not None
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, output = outcome(start(REDIS_URL=settings.redis_url, DFKD_STORAGE=settings.storage, DFKD_PORT=port))
    assert code == 2
    assert len(output.strip().splitlines()) == 1
    assert port in output
    assert "DFKD_PORT" in output


def test_a_missing_redis_url_is_one_clear_line(tmp_path: Path) -> None:
    code, output = outcome(start(DFKD_STORAGE=str(tmp_path)))
    assert code == 2
    assert len(output.strip().splitlines()) == 1
    assert "REDIS_URL" in output


def test_settings_that_cannot_work_are_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for wrong, named in (
        ({"DFKD_PORT": "eighty"}, "DFKD_PORT"),
        ({"REDIS_URL": "http://localhost"}, "REDIS_URL"),
        ({"DFKD_STORAGE": "ftp://host/x"}, "DFKD_STORAGE"),
        ({"DFKD_STORAGE": str(file / "below")}, "DFKD_STORAGE"),
    ):
        environment = {"REDIS_URL": "redis://127.0.0.1:1", "DFKD_STORAGE": str(tmp_path), **wrong}
        code, output = outcome(start(**environment))
        assert (code, len(output.strip().splitlines())) == (2, 1), output
        assert named in output
