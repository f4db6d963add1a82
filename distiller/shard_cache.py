"""Copies of shards from object storage on the local disk, so that none is downloaded twice.

A successor refills its pool, and several jobs may distil from one dataset: both read what this machine has read
before. The folder belongs to all distillers of a machine. Three rules keep it right without a database. *Names are
digests*: an entry is called after what it is a copy of and after its own SHA-256, which is checked at every use, so a
torn or rotten copy is fetched anew and never blamed on the storage. *Whoever uses an entry holds a lock on it*, which
the kernel drops with the process; what is locked is not evicted. *Room is made before a download*, under the lock of
the folder, so that the folder never holds more than its limit; what does not fit goes to the scratch folder.

fsspec's caches neither limit their size nor verify, and diskcache keeps its index in SQLite with pickles.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from shared.storage import Storage
from shared.storage.digests import file_sha256, sha256
from shared.storage.names import TEMPORARY_PREFIX
from shared.storage.outages import will_pass

logger = structlog.get_logger()

FOLDER_LOCK = ".lock"
_ENTRY = re.compile(r"[0-9a-f]{64}-[0-9a-f]{64}")
_DOWNLOAD = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{16}}-([0-9]+)")


class ShardCache:
    """Reads files of a storage through the cache. On a local storage, or without a folder, it only reads.

    Args:
        storage: where the files are.
        scratch: a local folder for what is not cached.
        folder: of the cache; None for none.
        max_bytes: most that the folder may hold.
    """

    def __init__(self, storage: Storage, scratch: Path, *, folder: Path | None, max_bytes: int) -> None:
        self._storage = storage
        self._scratch = scratch
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def fetched(self, name: str, *, sha256: str | None = None, size: int | None = None) -> Iterator[Path]:
        """A local path of a file, valid for as long as the block lasts. Leave the file as it is.

        Args:
            name: of the file in the storage.
            sha256: of its content, where that is known. A file with another one is handed out, for the reader to
                judge, but not kept. When unknown, the object's entity tag tells whether it has changed.
            size: in bytes, where that is known.

        Raises:
            FileNotFoundError: there is no such file.
            PathOutsideStorage: the name leaves the storage root.
        """
        entry = None
        if self._folder is not None and self._storage.local_path(name) is None:
            identity = sha256 or self._identity(name)
            entry = self._cached(self._folder, identity) or self._download(self._folder, name, identity, sha256, size)
        if entry is None:
            with self._storage.fetched(name, self._scratch) as path:
                yield path
        else:
            with entry:
                yield entry.path

    def _identity(self, name: str) -> str:
        """Stands for one version of one object."""
        parts = (self._storage.root, name, self._storage.entity_tag(name))
        return sha256("\n".join(parts).encode())

    def _cached(self, folder: Path, identity: str) -> _Entry | None:
        """The entry if there is a whole one."""
        for path in folder.glob(f"{identity}-*"):
            entry = _Entry.lock(path, fcntl.LOCK_SH)
            if entry is None:
                continue
            if file_sha256(path) == path.name.removeprefix(f"{identity}-"):
                os.utime(path)  # what was used last is evicted last
                return entry
            logger.warning("cached_shard_damaged", path=str(path))
            with entry:
                path.unlink(missing_ok=True)
        return None

    def _download(self, folder: Path, name: str, identity: str, sha256: str | None, size: int | None) -> _Entry | None:
        """A new entry; None when there is no room for one."""
        if size is None:
            size = self._storage.size(name)
        try:
            entry = self._reserve(folder, size)
        except OSError as error:
            # A cache is a convenience: a job does not fail for want of one.
            logger.warning("shard_cache_unusable", folder=str(folder), error=str(error))
            return None
        if entry is None:
            return None
        try:
            # Not patiently: what is full may be this folder, and without the cache the shard can be had as well.
            self._storage.impatient().download(name, entry.path)
            digest = file_sha256(entry.path)
            if sha256 in (None, digest) and entry.path.stat().st_size == size:
                entry.keep_as(folder / f"{identity}-{digest}")
        except BaseException as error:
            with entry:
                pass
            if will_pass(error):
                logger.warning("shard_cache_unusable", folder=str(folder), error=str(error))
                return None
            raise
        return entry

    def _reserve(self, folder: Path, size: int) -> _Entry | None:
        """An empty file for a download of so many bytes, once everything fits; None when it never will."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / FOLDER_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._make_room(folder, size):
                return None
            # The name says how large the file is going to be, for others to count.
            path = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{size}"
            path.touch(0o600)
            return _Entry.lock(path, fcntl.LOCK_EX)
        finally:
            os.close(lock)

    def _make_room(self, folder: Path, size: int) -> bool:
        """Evicts what was used longest ago, but nothing that is in use. Whether the size fits now."""
        entries: list[tuple[float, int, Path]] = []  # when used last, bytes, path; no file of anybody else
        for path in folder.iterdir():
            download = _DOWNLOAD.fullmatch(path.name)
            if download:
                # If nobody holds it, whoever began it has been killed: such a file goes first.
                entries.append((0.0, int(download[1]), path))
            elif _ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    entries.append((path.stat().st_mtime, path.stat().st_size, path))
        held = sum(size_of_entry for _, size_of_entry, _ in entries)
        for used_at, size_of_entry, path in sorted(entries):
            if used_at > 0 and held + size <= self._max_bytes:
                break
            entry = _Entry.lock(path, fcntl.LOCK_EX)
            if entry is not None:
                with entry:
                    path.unlink(missing_ok=True)
                held -= size_of_entry
        return held + size <= self._max_bytes


class _Entry:
    """A file that nobody evicts while the lock is held. A temporary one goes with it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def lock(cls, path: Path, how: int) -> _Entry | None:
        """The entry, or None when it has gone or others hold it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink == 0:  # evicted between the two calls
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self.path.name.startswith(TEMPORARY_PREFIX):
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def keep_as(self, path: Path) -> None:
        """Lets others find the entry, unless one of them has been faster; then this stays a temporary one."""
        try:
            os.link(self.path, path)
        except OSError:  # there is one, or this file system knows no links
            return
        self.path.unlink()
        self.path = path
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
