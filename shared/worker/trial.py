"""Work on strangers' data that may never end, or take all memory, done first by a child that can be killed.

A worker's heartbeat is a thread of its own, so a main thread that is stuck in a loop of some library looks alive for
ever: no lease runs out, no cancel is heard, and SIGTERM waits for it. So what a stranger can make endless (reading a
checkpoint, building a network from arguments) is tried in a forked child under a deadline, while the worker goes on
asking whether it should stop. Only what has ended there is done again here.

Forking a process with threads is what torch's own data loaders do; as there, the child uses one thread and no GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import torch

from shared.errors import UserError
from shared.networks.devices import is_out_of_memory

POLL_SECONDS: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1


class TrialFailed(Exception):
    """The work did not end well in the child.

    Args:
        reason: ``late``: not within the deadline. ``memory``: it was out of memory, or killed for it.
    """

    def __init__(self, reason: Literal["late", "memory"]) -> None:
        super().__init__(reason)
        self.reason = reason


def try_in_child(work: Callable[[], object], *, seconds: float, check: Callable[[], None] = lambda: None) -> None:
    """Does the work in a child, for the sake of knowing that it ends.

    Args:
        work: uses no GPU and no connection of this process; what it returns is lost.
        seconds: after which the child is killed.
        check: called every ``POLL_SECONDS``; what it raises ends the child and is raised.

    Raises:
        UserError: as the work raised it. Any other error is left for the caller to meet by itself.
        TrialFailed: it was too late, or out of memory.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forking with threads
        child = os.fork()
    if child == 0:
        _run_and_exit(work, writer, seconds)
    os.close(writer)
    ended = False
    try:
        said = _listen(reader, seconds, check)
        _, status = os.waitpid(child, 0)
        ended = True
    finally:
        os.close(reader)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if said.get("memory") or os.WIFSIGNALED(status):
        # The kernel kills for memory; a reader that crashes is none to be used here either.
        raise TrialFailed("memory")
    if "code" in said:
        raise UserError(said["code"], said["message"])


def _listen(reader: int, seconds: float, check: Callable[[], None]) -> dict[str, Any]:
    """What the child says before it closes its end."""
    due = time.monotonic() + seconds
    said = b""
    while True:
        check()
        if time.monotonic() > due:
            raise TrialFailed("late")
        if select.select([reader], [], [], POLL_SECONDS)[0]:
            piece = os.read(reader, 65536)
            if not piece:
                return dict(json.loads(said or b"{}"))
            said += piece


def _run_and_exit(work: Callable[[], object], writer: int, seconds: float) -> None:
    """The child's life. Ends without any of the cleaning up that is its parent's."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(each, signal.SIG_DFL)
        signal.alarm(int(seconds) + 5)  # for want of a parent
        with contextlib.suppress(OSError):
            # If somebody has to go for memory, let it be this one.
            Path("/proc/self/oom_score_adj").write_text("1000")
        torch.set_num_threads(1)
        said: dict[str, Any] = {}
        try:
            work()
        except UserError as error:
            said = {"code": error.code, "message": error.message}
        except MemoryError:
            said = {"memory": True}
        except Exception as error:  # of torch's allocator; whatever else it is, the parent will meet it
            said = {"memory": True} if is_out_of_memory(error) else {}
        os.write(writer, json.dumps(said).encode()[:60_000])
    finally:
        os._exit(0)
