"""Limits of tests hold on a machine that is busy with other work."""

import subprocess
import sys
import threading
import time

import pytest

from tests import waiting
from tests.waiting import assert_within, exit_code, slowness, wait_until


def test_a_busy_machine_is_slow_and_a_limit_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "slowness", lambda: 5.0)
    assert_within(4.0, 1.0)
    with pytest.raises(AssertionError, match="limit"):
        assert_within(6.0, 1.0)
    due = time.monotonic() + 0.3
    assert wait_until(lambda: time.monotonic() > due, timeout=0.1)
    with pytest.raises(AssertionError, match=r"nothing within 0\.5 s"):
        wait_until(lambda: False, timeout=0.1)


def test_slowness_is_seen_where_others_compute() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=compute) for _ in range(3)]  # they share one interpreter, and so one processor
    for thread in threads:
        thread.start()
    try:
        assert slowness() > 1.5
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_process_is_waited_for() -> None:
    assert exit_code(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]), timeout=20) == 3
