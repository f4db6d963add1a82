"""The embedded server: its lock, its port and that nothing is lost when it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from synth_service.local.redis import FolderInUse, answers, free_port, lock_folder
from tests.waiting import wait_until


@contextmanager
def serving(folder: Path, port: int, end: signal.Signals = signal.SIGTERM) -> Iterator[redis.Redis]:
    command = [sys.executable, "-m", "synth_service.local.redis", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port))
        with redis.Redis(port=port, decode_responses=True) as client:
            assert client.info("server")["process_id"] == process.pid  # it is the server, not its parent
            yield client
    finally:
        process.send_signal(end)
        code = process.wait(timeout=10)
    assert code == (0 if end is signal.SIGTERM else -end)


@pytest.mark.parametrize("folder", ["redis", 'a "quoted" folder\\with blanks'])
def test_what_was_written_is_there_after_a_clean_restart(tmp_path: Path, folder: str) -> None:
    port = free_port()
    with serving(tmp_path / folder, port) as client:
        client.set("job", "1")
    assert not answers(port)
    with serving(tmp_path / folder, port) as client:
        assert client.get("job") == "1"


def test_what_was_written_a_moment_ago_survives_a_kill(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, port, end=signal.SIGKILL) as client:
        client.set("job", "1")
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    with serving(tmp_path, port) as client:
        assert client.get("job") == "1"


def test_it_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    with serving(tmp_path, free_port()) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_folder_is_locked_once_and_free_after_its_lock_is_closed(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path / "redis")
    with pytest.raises(FolderInUse):
        lock_folder(tmp_path / "redis", patience_seconds=0)
    os.close(lock)
    os.close(lock_folder(tmp_path / "redis", patience_seconds=0))


def test_the_lock_lasts_as_long_as_the_process_that_inherited_it(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,)) as heir:
        os.close(lock)
        with pytest.raises(FolderInUse):
            lock_folder(tmp_path, patience_seconds=0)
        heir.terminate()
    os.close(lock_folder(tmp_path, patience_seconds=0))


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    ports = {free_port() for _ in range(50)}
    assert max(ports) < 32_768
    with socket.create_server(("127.0.0.1", ports.pop())):
        pass
