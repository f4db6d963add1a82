"""Waiting for a condition, so that no test sleeps for a guessed time, and limits that hold on a busy machine too.

A limit in seconds of the wall clock tells of everything that the machine does. So each is stretched by how much longer
than its own time on a processor a computation takes right there and then.
"""

import subprocess
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

Result = TypeVar("Result")

MOST_SLOWNESS = 10.0
"""So that a test of what never happens ends all the same."""


def slowness() -> float:
    """How many times longer than alone a computation takes now, between 1 and ``MOST_SLOWNESS``."""
    started, spent = time.perf_counter(), time.thread_time()
    while time.thread_time() - spent < 0.05:
        pass
    return min(max(1.0, (time.perf_counter() - started) / 0.05), MOST_SLOWNESS)


def wait_until(condition: Callable[[], Result | Literal[False] | None], timeout: float = 10.0) -> Result:
    """What ``condition`` returns as soon as that is true, asked every few milliseconds.

    Args:
        condition: called in this thread; exceptions pass through.
        timeout: seconds after which the test fails, or as many times more as the machine is slower then.
    """
    started = time.monotonic()
    limit = timeout
    while not (result := condition()):
        if time.monotonic() - started > limit:
            limit = max(limit, timeout * slowness())
            if time.monotonic() - started > limit:
                raise AssertionError(f"nothing within {limit:g} s; the condition last gave {result!r}")
        time.sleep(0.005)
    return result


def exit_code(process: "subprocess.Popen[Any]", timeout: float) -> int:
    """The exit code of a process that ends within so many seconds, or more on a busy machine; see ``wait_until``."""
    wait_until(lambda: process.poll() is not None, timeout)
    code = process.poll()
    assert code is not None
    return code


def assert_within(seconds: float, limit: float) -> None:
    """That something took no longer than a limit, in seconds, stretched by how busy the machine is."""
    assert seconds < limit or seconds < limit * slowness(), f"{seconds:.2f} s where {limit:g} s are the limit"
