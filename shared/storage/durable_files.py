"""Local files that survive a crash: write beside the target, fsync, rename, fsync the folder.

A rename is atomic but not by itself on disk: without the last fsync a power cut may bring the old name
back after the new one has been announced.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from shared.storage.names import TEMPORARY_PREFIX


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk or a quota is full: it passes once somebody makes room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def temporary_name() -> str:
    """A fresh file name that marks an unfinished file."""
    return f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def publish(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``target``, then rename it to ``target``, durably.

    Whatever goes wrong, a full disk included, the temporary is gone and ``target`` is as it was.
    """
    temporary = target.parent / temporary_name()
    try:
        write(temporary)
        sync_file(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def rename(source: Path, target: Path) -> bool:
    """Rename a file across folders, durably; False when they are on different disks and nothing was done."""
    sync_file(source)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    sync_folder(target.parent)
    return True


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each on disk before it is used."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
