"""Work of strangers' making ends in a child, one way or another, and the worker hears a stop meanwhile."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from shared.errors import UserError
from shared.worker.trial import TrialFailed, try_in_child
from tests.waiting import assert_within, wait_until


def for_ever() -> None:
    while True:
        pass


def holding_the_interpreter() -> None:
    """A loop in C that no thread and no signal handler of Python interrupts."""
    sum(dict.fromkeys(k * (2**61 - 1) for k in range(10**7)))


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def leaves_no_child() -> Iterator[None]:
    """After each test there is no child that was not there before; the server of the test session is one."""
    before = set(children())
    yield
    assert set(children()) <= before


def test_work_that_ends_changes_nothing_here() -> None:
    seen: list[int] = []
    try_in_child(lambda: seen.append(1), seconds=30)
    assert seen == []


def test_a_user_error_is_raised_as_it_is() -> None:
    def refuse() -> None:
        raise UserError("no_good", "teacher.checkpoint: ☹" + "x" * 10_000)

    with pytest.raises(UserError, match="☹") as caught:
        try_in_child(refuse, seconds=30)
    assert caught.value.code == "no_good"


def test_other_errors_are_left_for_the_caller_to_meet() -> None:
    def fail() -> None:
        raise OSError("the disk")

    try_in_child(fail, seconds=30)


@pytest.mark.parametrize("work", [for_ever, holding_the_interpreter])
def test_work_without_end_is_killed_at_the_deadline(work: object) -> None:
    assert callable(work)
    started = time.monotonic()
    with pytest.raises(TrialFailed, match="late"):
        try_in_child(work, seconds=0.3)
    assert_within(time.monotonic() - started, 10)


def test_a_stop_is_heard_while_the_child_works() -> None:
    calls: list[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        try_in_child(holding_the_interpreter, seconds=60, check=check)


def test_memory_that_is_not_there_is_said_to_be_the_reason() -> None:
    with pytest.raises(TrialFailed, match="memory"):
        try_in_child(lambda: torch.empty(2**60, dtype=torch.uint8), seconds=30)
    with pytest.raises(TrialFailed, match="memory"):
        try_in_child(lambda: bytearray(2**62), seconds=30)
    with pytest.raises(TrialFailed, match="memory"):
        try_in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), seconds=30)


def test_a_child_ends_with_its_worker(tmp_path: Path) -> None:
    noted = tmp_path / "pid"

    def work() -> None:
        noted.write_text(str(os.getpid()))
        for_ever()

    worker = os.fork()
    if worker == 0:
        try:
            try_in_child(work, seconds=60)
        finally:
            os._exit(0)
    wait_until(lambda: noted.exists() and noted.read_text())
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_until(lambda: not psutil.pid_exists(int(noted.read_text())) or _is_gone(int(noted.read_text())))


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
