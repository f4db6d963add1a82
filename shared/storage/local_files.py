"""Files below a local folder. Errors are those of the operating system; ``Storage`` says what they mean."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shared.storage import durable_files
from shared.storage.names import TEMPORARY_PREFIX, PathOutsideStorage


class LocalFiles:
    """Files of one folder, which is never made here: where it is missing, its disk may be.

    Args:
        folder: absolute.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """Where a checked name lies.

        Raises:
            PathOutsideStorage: a symbolic link leads out of the folder.
        """
        path = self._folder / name
        # realpath rather than Path.resolve: it also follows the links of a path that ends in nothing.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._folder)):
            raise PathOutsideStorage(f"storage name {name!r} leads out of the storage root through a symbolic link")
        return path

    def open(self, name: str) -> BinaryIO:
        """The file for reading."""
        # Not blocking, or a named pipe would be waited for.
        descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "no regular file", name)
        return os.fdopen(descriptor, "rb")

    def probe(self, name: str) -> None:
        """Raises what opening the file would."""
        self.open(name).close()

    def size(self, name: str) -> int:
        """Bytes of the file."""
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def entity_tag(self, name: str) -> str:
        """Size and time of change."""
        with self.open(name) as file:
            status = os.fstat(file.fileno())
            return str((status.st_size, status.st_mtime))

    def download(self, name: str, target: Path) -> None:
        """Copies the file to a local path."""
        with self.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every file in a folder and below it, temporaries included; of all without one.

        Raises:
            OSError: a folder cannot be read. Half a list would look like files that are gone.
        """
        start = self.path(prefix) if prefix else self._folder
        with os.scandir(start):
            pass
        found = {}
        for folder, _, files in os.walk(start, onerror=_raise_unless_gone):
            for file in files:
                path = Path(folder, file)
                with suppress(FileNotFoundError):  # deleted meanwhile, or a link to nothing
                    found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
        return found

    def put_bytes(self, data: bytes, name: str) -> None:
        """Stores the data atomically and durably."""
        target = self._target(name)
        durable_files.publish(target, lambda temporary: temporary.write_bytes(data))

    def put_file(self, local: Path, name: str, *, move: bool) -> None:
        """Stores a local file atomically and durably."""
        target = self._target(name)
        if move:
            try:
                if durable_files.rename(local, target):
                    return
            except FileNotFoundError:
                if local.exists() or not target.exists():
                    raise
                durable_files.sync_folder(target.parent)  # renamed by a first try, which failed right after
                return
        durable_files.publish(target, lambda temporary: shutil.copyfile(local, temporary))
        if move:
            local.unlink(missing_ok=True)

    def move(self, source: str, name: str) -> None:
        """Renames a file, durably."""
        target = self._target(name)
        try:
            durable_files.rename(self.path(source), target)
        except FileNotFoundError:
            if not target.exists():
                raise
            durable_files.sync_folder(target.parent)  # renamed by a first try, which failed right after

    def delete(self, name: str) -> None:
        """Removes the file."""
        self.path(name).unlink()

    def delete_tree(self, prefix: str) -> None:
        """Removes a folder, which vanishes from its name in one step."""
        # A symbolic link inside the tree is removed, never followed.
        folder = self.path(prefix)
        grave = folder.parent / durable_files.temporary_name()
        folder.rename(grave)
        durable_files.sync_folder(grave.parent)
        os.utime(grave)  # not stale while it is being emptied
        shutil.rmtree(grave)

    def remove_stale_temporaries(self, prefix: str, older_than_seconds: float) -> int:
        """Removes what killed writers left and returns how many entries that were."""
        before = time.time() - older_than_seconds
        start = self.path(prefix) if prefix else self._folder
        removed = 0
        for folder, folders, files in os.walk(start):
            for entry in [entry for entry in (*folders, *files) if entry.startswith(TEMPORARY_PREFIX)]:
                path = Path(folder, entry)
                with suppress(FileNotFoundError):
                    if path.lstat().st_mtime < before:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                        removed += 1
            folders[:] = [entry for entry in folders if not entry.startswith(TEMPORARY_PREFIX)]
        return removed

    def free_bytes(self) -> int | None:
        """Bytes that may still be written."""
        return shutil.disk_usage(self._folder).free

    def _target(self, name: str) -> Path:
        """Where a file is to lie, its folder made if the root itself is there."""
        target = self.path(name)
        missing = [folder for folder in target.parents if folder.is_relative_to(self._folder)]
        os.stat(self._folder)  # noqa: PTH116 -- raises where Path.is_dir would say no
        for folder in reversed(missing):
            if folder != self._folder and not folder.is_dir():
                folder.mkdir(exist_ok=True)
                durable_files.sync_folder(folder.parent)
        return target


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
