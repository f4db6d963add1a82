"""Outages of every kind: waited for, told of at once, until the process is to end. And addresses of every kind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import redis
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from shared.broker import Broker, ServerUnavailable
from shared.broker.connection import connect, sentinel_address, will_pass
from shared.jobs import Role
from tests.conftest import free_port
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job
from tests.tls import self_signed
from tests.waiting import assert_within

ODD_ANSWERS = [
    "-LOADING Redis is loading the dataset in memory",
    "-MISCONF Errors writing to the AOF file: No space left on device",
    "-NOREPLICAS Not enough good replicas to write.",
    "-READONLY You can't write against a read only replica.",
    "-OOM command not allowed when used memory > 'maxmemory'.",
    "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "-ERR Error running script (call to f_1): @user_script:2: -READONLY You can't write against a read only replica.",
]


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Does something a moment from now, while the test waits for it."""
    timers: list[threading.Timer] = []

    def later(do: Callable[[], object]) -> None:
        timers.append(threading.Timer(0.3, do))
        timers[-1].start()

    yield later
    for timer in timers:
        timer.join()


class Answering:
    """A server that gives these answers to commands, whatever they are, and then says +OK.

    Args:
        answers: as they go over the line.
    """

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Answering:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while data := client.recv(65_536):
                # On connecting, clients tell who they are and ask whether somebody is there.
                for command in (each for each in (b"CLIENT", b"PING", b"SET\r\n") for _ in range(data.count(each))):
                    if command == b"CLIENT":
                        client.sendall(b"+OK\r\n")
                    elif command == b"PING":
                        client.sendall(b"+PONG\r\n")
                    else:
                        client.sendall((self._answers.pop(0) if self._answers else "+OK").encode() + b"\r\n")


def test_a_process_that_is_to_end_waits_no_longer_for_a_server_that_is_away() -> None:
    broker = Broker(f"redis://127.0.0.1:{free_port()}")
    broker.hurry(0.3)
    started = time.monotonic()

    with pytest.raises(ServerUnavailable):
        broker.redis.ping()

    seconds = time.monotonic() - started
    assert seconds > 0.2
    assert_within(seconds, 3)
    broker.close()


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_whatever_will_pass_is_waited_for(answer: str) -> None:
    with Answering(answer, answer) as server, closing(connect(server.url)) as client:
        assert client.set("a", 1)


def test_without_patience_every_outage_is_the_same_error() -> None:
    with Answering(*ODD_ANSWERS) as server, closing(connect(server.url, retries=0)) as client, capture_logs() as lines:
        for _ in ODD_ANSWERS:
            with pytest.raises(ServerUnavailable):
                client.set("a", 1)

    assert lines == []  # it is for the caller to tell


def test_a_mistake_of_ours_is_no_outage() -> None:
    assert not will_pass(ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))
    assert not will_pass(ResponseError("NOGROUP No such key 'OOMEN' or consumer group"))
    with (
        Answering("-ERR unknown command") as server,
        closing(connect(server.url)) as client,
        pytest.raises(ResponseError, match="unknown"),
    ):
        client.set("a", 1)


def test_a_full_server_is_waited_for(broker: Broker, later: Callable[[Callable[[], object]], None]) -> None:
    patient = Broker(f"redis://127.0.0.1:{broker.redis.connection_pool.connection_kwargs['port']}")
    broker.redis.config_set("maxmemory", 1)
    later(lambda: broker.redis.config_set("maxmemory", 0))

    job = patient.jobs.create(small_job())

    assert broker.jobs.get(job.id).id == job.id
    patient.close()


def test_a_server_that_a_failover_made_a_replica_is_waited_for(
    broker: Broker, later: Callable[[Callable[[], object]], None]
) -> None:
    patient = Broker(f"redis://127.0.0.1:{broker.redis.connection_pool.connection_kwargs['port']}", lease_seconds=60)
    job = broker.jobs.create(small_job())
    attempt = claim(patient)
    broker.redis.config_set("replica-read-only", "yes")
    broker.redis.replicaof("127.0.0.1", free_port())
    later(lambda: broker.redis.replicaof("NO", "ONE"))

    patient.shards.announce(attempt, manifest_of(attempt, 0), {})

    assert len(broker.shards.manifests(job.id)) == 1
    patient.close()


def test_the_first_failure_is_told_at_once_and_the_end_as_well() -> None:
    loading = "-LOADING Redis is loading"
    with Answering(loading, loading) as server, closing(connect(server.url)) as client, capture_logs() as lines:
        client.set("a", 1)

    assert [line["event"] for line in lines] == ["server_unavailable", "server_is_back"]


def test_whatever_version_of_the_protocol_the_address_asks_for(redis_url: str) -> None:
    broker = Broker(f"{redis_url}?protocol=3", lease_seconds=60.0)
    job = broker.jobs.create(small_job())
    attempt, distiller = claim(broker), claim(broker, Role.DISTILLATION)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {})
    (shard,) = broker.shards.read(job.id, "0")
    broker.shards.quarantine(distiller, shard, "missing")
    broker.leases.release(attempt, "worker stopping")

    assert claim(broker).number == 2
    assert broker.statistics.snapshot().images == 16
    assert broker.retention.forget_consumers(idle_seconds=0) >= 0
    broker.close()


def test_a_wrong_password_is_no_outage(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.config_set("requirepass", "right")
        try:
            broker = Broker(redis_url.replace("redis://", "redis://:wrong@"))
            complaint = broker.complaint()
        finally:
            with redis.Redis.from_url(redis_url.replace("redis://", "redis://:right@")) as again:
                again.config_set("requirepass", "")
    broker.close()

    assert complaint is not None
    assert "refuses user or password" in complaint
    assert "wrong@" not in complaint


def test_a_certificate_that_is_not_trusted_is_no_outage(tmp_path: Path) -> None:
    for port in self_signed(tmp_path):
        broker = Broker(f"rediss://127.0.0.1:{port}")
        complaint = broker.complaint()
        broker.close()

    assert complaint is not None
    assert "certificate is not trusted" in complaint


def test_a_server_that_is_away_or_right_is_no_reason_to_complain(redis_url: str) -> None:
    for url in (redis_url, f"redis://127.0.0.1:{free_port()}"):
        broker = Broker(url)
        assert broker.complaint() is None
        broker.close()


def test_addresses_of_sentinels() -> None:
    url = "redis+sentinel://user:p%40ss@one:26379,[::1]:26380/mymaster/3"

    assert sentinel_address(url) == ([("one", 26379), ("::1", 26380)], "mymaster", 3)
    assert sentinel_address("redis+sentinel://one:1/main") == ([("one", 1)], "main", 0)
    for broken in ("redis+sentinel://one/main", "redis+sentinel://one:1", "redis+sentinel://one:1/main/x"):
        with pytest.raises(ValueError, match="SERVICE"):
            connect(broken)
