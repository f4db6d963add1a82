"""`dfkd up` as a user runs it, with the real API and the real embedded server; and what it decides beforehand."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from synth_service.client import Client
from synth_service.local.service import CannotStart, Interrupted, StopSignals, available_cores, check_can_listen
from tests.conftest import free_port
from tests.synth_service.api_process import answers, clean_environment
from tests.waiting import wait_until

UP = [sys.executable, "-c", "from synth_service.cli import main; main()", "up", "--distillers", "0"]


class Running:
    """A `dfkd up` and what belongs to it."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by what they run, once each has become that."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            command = " ".join(child.cmdline())
            if "tethered" in command:
                continue
            if "valkey-server" in command:
                found["redis"] = child
            elif "synth_service.api" in command:
                found["api"] = child
            elif "synth_service.worker" in command:
                found["synth"] = child
        return found


def up_arguments(storage: Path, port: int, synth_workers: int = 0) -> list[str]:
    return [*UP, "--storage", str(storage), "--port", str(port), "--synth-workers", str(synth_workers)]


@contextmanager
def up(storage: Path, port: int, synth_workers: int = 0) -> Iterator[Running]:
    with (storage.parent / "up.log").open("w") as log:
        process = subprocess.Popen(
            up_arguments(storage, port, synth_workers), stderr=log, text=True, env=clean_environment()
        )
        running = Running(process, f"http://127.0.0.1:{port}")
        try:
            wait_until(lambda: answers(running.url), timeout=60)
            yield running
        finally:
            left = list(running.children().values()) if process.poll() is None else []
            process.kill()
            process.wait()
            psutil.wait_procs(left, timeout=10)


def run_up(storage: Path, port: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        up_arguments(storage, port), capture_output=True, text=True, env=clean_environment(), timeout=60
    )


def spec(storage: Path) -> dict[str, object]:
    (storage / "teacher.safetensors").write_bytes(b"weights")
    teacher = {"arch": "resnet20", "num_classes": 10, "checkpoint": "teacher.safetensors"}
    return {"teacher": teacher, "synthesis": {"num_images": 8}, "distillation": None}


def test_the_server_is_started_again_on_the_same_files_and_a_second_up_is_refused(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with up(storage, free_port()) as running, Client(running.url) as client:
        job = client.jobs.create(spec(storage))
        server = running.children()["redis"]
        wait_until(lambda: len(server.cmdline()[0].split()) == 2)
        command = server.cmdline()
        server.kill()
        server.wait(timeout=5)
        wait_until(lambda: "redis" in running.children() and answers(running.url))
        assert running.children()["redis"].pid != server.pid
        # A server that has started gives itself a title of its own.
        wait_until(lambda: running.children()["redis"].cmdline() == command)
        assert client.jobs.get(job.id).id == job.id

        second = run_up(storage, free_port())
        assert second.returncode == 2
        assert "another `dfkd up` is running on this storage" in second.stderr
        assert "Traceback" not in second.stderr


def test_the_data_of_the_server_is_beside_the_storage_and_for_nobody_else(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    former = storage / "redis"
    with up(storage, free_port()) as running, Client(running.url) as client:
        job = client.jobs.create(spec(storage))
    private = tmp_path / "storage.private"
    assert not former.exists()
    # As a version of before left it, readable by everybody.
    (private / "redis").rename(former)
    for path in former.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with up(storage, free_port()) as running, Client(running.url) as client:
        assert client.jobs.get(job.id).id == job.id
        files = [path for path in private.rglob("*") if path.is_file()]
        assert any(path.suffix == ".aof" for path in files)
        assert {path.stat().st_mode & 0o077 for path in (private, *private.rglob("*"))} == {0}
    assert not former.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_everything_in_order(tmp_path: Path, number: signal.Signals, code: int) -> None:
    storage = tmp_path / "storage"
    with up(storage, free_port()) as running:
        children = running.children()
        assert children.keys() == {"redis", "api"}
        running.process.send_signal(number)
        assert running.process.wait(timeout=20) == code
        assert not any(child.is_running() for child in children.values())
    log = (tmp_path / "up.log").read_text()
    assert "everything is stopped" in log
    assert "did not stop in time" not in log


def test_a_worker_is_stopped_before_the_server(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with up(storage, free_port(), synth_workers=1) as running:
        wait_until(lambda: "worker_started" in (tmp_path / "up.log").read_text(), timeout=60)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=30) == 130
    log = (tmp_path / "up.log").read_text()
    assert log.index("worker_stopped") < log.index("Received SIGTERM scheduling shutdown")
    assert "server_unreachable" not in log


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
def test_nothing_outlives_an_up_that_is_killed_and_its_files_can_be_used_at_once(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with up(storage, free_port()) as running, Client(running.url) as client:
        job = client.jobs.create(spec(storage))
        children = list(running.children().values())
        running.process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    with up(storage, free_port()) as running, Client(running.url) as client:
        assert client.jobs.get(job.id).state == "queued"


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_up(tmp_path / "storage", port)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: cannot listen on 127.0.0.1:{port} (Address already in use); choose another with --port\n"
    )
    assert not (tmp_path / "storage").exists()


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(CannotStart, match=r"cannot listen on 192\.0\.2\.1:8000 .*--host"):
        check_can_listen("192.0.2.1", 8000)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        up_arguments(tmp_path, 8000), capture_output=True, text=True, env=clean_environment(DFKD_LOG_LEVEL="loud")
    )
    assert done.returncode == 2
    assert "log_level" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_redis_url_that_is_none_is_reported_without_a_traceback(tmp_path: Path) -> None:
    environment = clean_environment(REDIS_URL="http://:secret@localhost")
    done = subprocess.run(
        up_arguments(tmp_path / "storage", free_port()), capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 2
    assert "REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_signals_are_noted_and_a_second_one_is_urgent() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as interruption:
            signals.check()
        assert interruption.value.number is signal.SIGTERM
        assert not signals.is_urgent()
        signal.raise_signal(signal.SIGINT)
        assert signals.is_urgent()
    assert signal.getsignal(signal.SIGTERM) is before


def test_there_is_at_least_one_core_and_no_more_than_the_machine_has() -> None:
    assert 1 <= available_cores() <= (psutil.cpu_count() or 1)
