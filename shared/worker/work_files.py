"""Workers' checkpoints: files that a pointer in the broker names, and what becomes of the ones before.

The pointer holds the file's sha256, so a checkpoint is used as it was written or not at all. A file that was
replaced is kept for a moment: a Redis server that syncs its append-only file once a second may forget the
last second when it crashes, and what it then remembers names the file before.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
import torch

from shared.events import EventType
from shared.storage import Storage
from shared.worker.loop import Turn

logger = structlog.get_logger()

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
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), **more}


def read(turn: Turn, pointer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that a pointer leads to, or None when the storage has lost it.

    The job is told of a loss: it costs time, not the job.
    """
    try:
        data = turn.storage.read_bytes(pointer["name"])
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() == pointer["sha256"]:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state
    logger.warning("checkpoint_lost", name=pointer["name"], bytes=len(data))
    turn.report(EventType.CHECKPOINT_LOST, {"name": pointer["name"]})
    return None


class SupersededFiles:
    """Deletes files some time after they were replaced. What a killed process leaves goes with the job.

    Args:
        storage: where they are.
        left_over: files of earlier attempts.
    """

    def __init__(self, storage: Storage, left_over: Iterable[str] = ()) -> None:
        self._storage = storage
        self._waiting: deque[tuple[float, str]] = deque()
        for name in left_over:
            self.add(name)

    def add(self, name: str) -> None:
        """A file that is no longer the newest. Deletes those whose time has come."""
        self._waiting.append((time.monotonic() + KEPT_SECONDS, name))
        self.delete_due()

    def delete_due(self) -> None:
        """Deletes what was kept long enough; also to be called when the storage is full."""
        moment = time.monotonic()
        while self._waiting and (self._waiting[0][0] <= moment or len(self._waiting) > KEPT_FILES):
            self._storage.delete(self._waiting.popleft()[1])
