"""Waiting for a condition, so that no test sleeps for a guessed time."""

import time
from collections.abc import Callable
from typing import Literal, TypeVar

Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result | Literal[False] | None], timeout: float = 10.0) -> Result:
    """What ``condition`` returns as soon as that is true, asked every few milliseconds.

    Args:
        condition: called in this thread; exceptions pass through.
        timeout: seconds after which the test fails.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing within {timeout:g} s; the condition last gave {result!r}")
        time.sleep(0.005)
    return result
