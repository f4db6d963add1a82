"""Workers' files: written, made to count by a fenced call, removed if they did not. For shards, checkpoints, snapshots.

A checkpoint is a file that a pointer in the broker names. The pointer holds the file's sha256, so a checkpoint is used
as it was written or not at all. A file that was replaced is kept for a moment: a Redis server that syncs its
append-only file once a second may forget the last second when it crashes, and what it then remembers names the file
before.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import structlog
import torch

from shared.broker import LeaseLost
from shared.events import EventType
from shared.storage import job_paths
from shared.storage.digests import sha256
from shared.worker.turn import Turn

logger = structlog.get_logger()

SECOND_LOOK_SECONDS = 1.0
"""Before a checkpoint counts as lost."""

KEPT_SECONDS = 5.0
"""``appendfsync everysec`` loses one second, two when the disk is slow."""

KEPT_FILES = 8
"""At most, so that a worker that is quick does not fill the disk with what it replaced."""


def encode(state: Mapping[str, Any]) -> bytes:
    """A state of tensors, numbers and strings as the content of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def pointer_to(name: str, data: bytes, **more: Any) -> dict[str, Any]:
    """What the broker stores of a checkpoint file."""
    return {"name": name, "sha256": sha256(data), **more}


class WorkFiles:
    """The files of one attempt. Those that a killed process leaves go with the job.

    Args:
        turn: the attempt. While its storage is full, files that were replaced are deleted.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._replaced: deque[tuple[float, str]] = deque()
        turn.make_room = self.delete_due

    def publish(
        self,
        *names: str,
        write: Callable[[], object],
        fence: Callable[[], object],
        counted: Callable[[], bool],
        instead_of: str | None = None,
    ) -> None:
        """Writes files and makes them count; if they cannot, nothing of them stays.

        Args:
            names: of the files in the storage.
            write: writes them; called again while the storage has no room. May ask the broker for leave itself.
            fence: the call to the broker from which on they count.
            counted: whether they do after all. A refusal alone does not tell: when an answer was lost on the way, the
                call is sent again, and by then it can be refused although the first one counted.
            instead_of: a file that they replace.

        Raises:
            LeaseLost: another attempt has the task. After any other error it is open whether the files count, so
                they stay until the job ends.
        """
        try:
            self._turn.persist(write)
            fence()
        except LeaseLost:
            if not counted():
                for name in names:
                    self._turn.storage.delete(name)
            raise
        if instead_of is not None:
            self._replace(instead_of)

    def load(self, pointer: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state that a pointer leads to, or None when the storage has lost it.

        The job is told of a loss: it costs time, not the job.
        """
        data = b""
        for is_last in (False, True):
            # The storage says that a file is missing only when it is there itself; half a file may be a bad moment.
            with suppress(FileNotFoundError):
                data = self._turn.storage.read_bytes(pointer["name"])
            if sha256(data) == pointer["sha256"]:
                state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                return state
            if not is_last:
                self._turn.pause(SECOND_LOOK_SECONDS)
        logger.warning("checkpoint_lost", name=pointer["name"], bytes=len(data))
        self._turn.report(EventType.CHECKPOINT_LOST, {"name": pointer["name"]})
        return None

    def adopt(self, prefixes: tuple[str, ...], in_use: Collection[str | None]) -> None:
        """Takes over the files of earlier attempts: all that begin with a prefix and are not in use go in time."""
        for name in self._turn.storage.list(job_paths.work(self._turn.attempt.job_id)):
            if name.startswith(prefixes) and name not in in_use:
                self._replace(name)

    def _replace(self, name: str) -> None:
        self._replaced.append((time.monotonic() + KEPT_SECONDS, name))
        self.delete_due()

    def delete_due(self) -> None:
        """Deletes what was replaced long enough ago."""
        moment = time.monotonic()
        while self._replaced and (self._replaced[0][0] <= moment or len(self._replaced) > KEPT_FILES):
            self._turn.storage.delete(self._replaced.popleft()[1])
