"""Local folders that go with the process that made them, even when it is killed.

Whoever lives holds a lock on its folder, which the kernel drops with the process. So a folder whose lock is
free belongs to nobody, whichever container or user namespace its process number came from.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "dfkd-scratch-"
LOCK_NAME = ".dfkd-scratch-lock"
"""Nothing else has a file of this name, so no other folder is taken for one of these, whatever it is called."""

SETTLING_SECONDS = 60.0
"""A younger folder is left alone: its maker may not have locked it yet."""


class Scratch:
    """A fresh local folder; ``close`` removes it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Removes the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(*, older_than_seconds: float = SETTLING_SECONDS) -> int:
    """Removes the folders of killed processes of this machine and returns how many those were."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # Not a folder of ours, somebody else's, or being removed by its owner just now.
        with suppress(OSError):
            if folder.lstat().st_mtime > time.time() - older_than_seconds:
                continue
            lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed += 1
            finally:
                os.close(lock)
    return removed
