"""Outages: waited for, until the process is to end."""

import time

import pytest
import redis

from shared.broker import Broker
from tests.conftest import free_port


def test_a_process_that_is_to_end_waits_no_longer_for_a_server_that_is_away() -> None:
    broker = Broker(f"redis://127.0.0.1:{free_port()}")
    broker.hurry(0.3)
    started = time.monotonic()

    with pytest.raises(redis.ConnectionError):
        broker.redis.ping()

    assert 0.2 < time.monotonic() - started < 3
    broker.close()
