"""One storage root, a local folder or an ``s3://`` address; names below it are relative POSIX paths.

Two promises carry everything above. *Atomic*: a name either holds the whole content or does not exist; a
full disk or a kill at any moment leaves at worst a ``.tmp-*`` file, which no listing shows and
``remove_stale_temporaries`` clears away. *Confined*: no name, whatever a client wrote, reaches outside
the root, also not through a symbolic link.

Credentials and endpoint of S3 come from the environment as with every AWS tool (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from shared.storage import durable_files
from shared.storage.durable_files import TEMPORARY_PREFIX

MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255

PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
"""Of an upload to object storage: what it takes of memory, whatever the size of the file."""

Names = list[str]
"""Inside the class, ``list`` is the method."""


class PathOutsideStorage(ValueError):
    """A name that is no plain relative path below the storage root."""


def check_name(name: str) -> str:
    """The name itself if it is a plain relative POSIX path, whatever it may point to.

    Raises:
        PathOutsideStorage: absolute, ``..`` or ``.``, empty parts, backslash, control character, URL
            scheme, too long, or a reserved ``.tmp-`` name.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise PathOutsideStorage(f"storage name {name!r} is not valid Unicode") from None
    parts = name.split("/")
    if not name:
        reason = "is empty"
    elif name.startswith("/"):
        reason = "is absolute; give a path relative to the storage root"
    elif any(ord(character) < 32 or ord(character) == 127 for character in name) or "\\" in name:
        reason = "contains a backslash or a control character"
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        reason = "looks like a URL or a drive; give a path relative to the storage root"
    elif any(part in ("", ".", "..") for part in parts):
        reason = "has an empty, `.` or `..` part"
    elif any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        reason = f"has a part that starts with the reserved {TEMPORARY_PREFIX!r}"
    elif len(encoded) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        reason = f"is longer than {MAX_NAME_BYTES} bytes, or one of its parts than {MAX_PART_BYTES}"
    else:
        return name
    raise PathOutsideStorage(f"storage name {name[:200]!r} {reason}")


class Storage:
    """Files below one root.

    Args:
        root: a local folder or ``s3://bucket[/prefix]``.
        create: make the local folder if it is missing. A bucket is never created.

    Methods that take a ``name`` raise ``PathOutsideStorage`` for one that leaves the root, and
    ``FileNotFoundError`` where they need a file that is not there.
    """

    def __init__(self, root: str, *, create: bool = True) -> None:
        protocol = root.split("://", 1)[0] if "://" in root else None
        if protocol not in (None, "s3"):
            raise ValueError(f"storage root {root!r}: give a local folder or s3://bucket/prefix")
        self._folder: Path | None = None
        if protocol is None:
            self._folder = Path(root).expanduser().absolute()
            if create:
                durable_files.make_folder(self._folder)
            self.root = str(self._folder)
            self._files = fsspec.filesystem("file")
        else:
            self.root = root.rstrip("/")
            # Other processes write the same bucket: a cached listing would hide what they announced.
            self._files = fsspec.filesystem("s3", use_listings_cache=False)

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    # Reading

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name; a folder is none."""
        return bool(self._files.isfile(self._address(name)))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._files.size(self._file_address(name)))

    def open(self, name: str) -> BinaryIO:
        """A file for reading, seekable. Close it."""
        return cast(BinaryIO, self._files.open(self._file_address(name), "rb"))

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file."""
        with self.open(name) as file:
            return file.read()

    def list(self, prefix: str = "") -> Names:
        """Sorted names of all files in a folder and below it; of everything without one."""
        return [name for name in self._walk(prefix) if not _is_temporary(name)]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of all files in a folder and below it, by sorted name; on object storage from the listing alone."""
        names = self.list(prefix)
        if self._folder:
            return {name: Path(self._address(name)).stat().st_size for name in names}
        start = self._address(prefix) if prefix else self.root
        found = cast(Any, self._files.find(start, detail=True))
        bucket_path = self.root.removeprefix("s3://")
        return {name: int(found[f"{bucket_path}/{name}"]["size"]) for name in names}

    def local_path(self, name: str) -> Path | None:
        """Where the file lies on this machine, present or not; None on object storage."""
        return Path(self._address(name)) if self._folder else None

    def fetch(self, name: str, folder: Path) -> Path:
        """A local path of the file: itself when it is local, or else a copy in ``folder``.

        A copy appears under its last name part, whole or not at all, and is the caller's to delete;
        ``local_path(name) is None`` tells that it is one.
        """
        address = self._file_address(name)
        if self._folder:
            return Path(address)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / PurePosixPath(name).name
        durable_files.publish(target, lambda temporary: self._files.get_file(address, str(temporary)))
        return target

    def download(self, name: str, target: Path) -> None:
        """Copies a file into a local one, as it goes: what fails leaves half a copy."""
        self._files.get_file(self._file_address(name), str(target))

    def entity_tag(self, name: str) -> str:
        """Changes with the content of an object; of a local file, with its size and time of change."""
        info = self._files.info(self._file_address(name))
        return str(info.get("ETag") or (info["size"], info.get("mtime")))

    # Writing

    def put_bytes(self, data: bytes, name: str) -> None:
        """Store ``data`` under ``name``, atomically and durably; replaces what was there."""
        address = self._address(name)
        if self._folder:
            durable_files.make_folder(Path(address).parent)
            durable_files.publish(Path(address), lambda temporary: temporary.write_bytes(data))
        else:
            self._files.pipe_file(address, data)

    def put_file(self, local: Path, name: str, *, move: bool = False) -> None:
        """Store a local file under ``name``, atomically and durably; replaces what was there.

        Args:
            local: file to store.
            name: where to.
            move: give the local file up. On the same disk it is renamed instead of copied. It is gone
                only after the new name is durable.
        """
        address = self._address(name)
        if self._folder:
            target = Path(address)
            durable_files.make_folder(target.parent)
            if move and durable_files.rename(local, target):
                return
            durable_files.publish(target, lambda temporary: shutil.copyfile(local, temporary))
        else:
            # One object is put, or the multipart upload completed, in one atomic step.
            self._files.put_file(str(local), address, chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        if move:
            local.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file; no error when it is gone already, so that a repeated clean-up succeeds."""
        address = self._address(name)
        with suppress(FileNotFoundError):
            if self._folder:
                os.unlink(address)  # noqa: PTH108 -- the address is a string for both kinds of storage
            else:
                self._files.rm_file(address)

    def delete_tree(self, prefix: str) -> None:
        """Remove a folder and everything in it; no error when there is none.

        A local folder vanishes from its name in one step. On object storage the objects go one after
        another, and a repeated call finishes what a crash left.
        """
        address = self._address(prefix)
        if self._folder:
            # A symbolic link inside the tree is removed, never followed.
            grave = Path(address).parent / durable_files.temporary_name()
            try:
                Path(address).rename(grave)
            except FileNotFoundError:
                return
            durable_files.sync_folder(grave.parent)
            os.utime(grave)  # not stale while it is being emptied
            shutil.rmtree(grave)
        else:
            addresses = [self._address(name) for name in self._walk(prefix)]
            if addresses:
                self._files.rm(addresses)

    def remove_stale_temporaries(self, prefix: str = "", *, older_than_seconds: float) -> int:
        """Remove what killed writers left below a folder and return how many entries that were.

        A living writer's file is younger, since every write renews its time. Object storage never shows
        an unfinished upload; let a lifecycle rule of the bucket expire those.
        """
        if not self._folder:
            return 0
        before = time.time() - older_than_seconds
        start = Path(self._address(prefix)) if prefix else self._folder
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

    # State of the storage itself

    def check_writable(self) -> None:
        """Write a small file and remove it again; raises the ``OSError`` that real work would meet."""
        probe = f"write-probe-{secrets.token_hex(8)}"
        self.put_bytes(b"ok", probe)
        self.delete(probe)

    def free_bytes(self) -> int | None:
        """Bytes that may still be written; None where there is no such number."""
        return shutil.disk_usage(self._folder).free if self._folder else None

    # Names

    def _address(self, name: str) -> str:
        """What the file system calls the name, once it is known to be inside the root."""
        check_name(name)
        if not self._folder:
            return f"{self.root}/{name}"
        path = self._folder / name
        # realpath rather than Path.resolve: it also follows the links of a path that ends in nothing.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._folder)):
            raise PathOutsideStorage(f"storage name {name!r} leads out of the storage root through a symbolic link")
        return str(path)

    def _file_address(self, name: str) -> str:
        address = self._address(name)
        if not self._files.isfile(address):
            raise FileNotFoundError(errno.ENOENT, "no such file in the storage", name)
        return address

    def _walk(self, prefix: str) -> Names:
        """Sorted names below a folder, temporaries included."""
        start = self._address(prefix) if prefix else self.root
        if self._folder:
            found = [
                Path(folder, file).relative_to(self._folder).as_posix()
                for folder, _, files in os.walk(start)
                for file in files
            ]
        else:
            bucket_path = self.root.removeprefix("s3://")
            below = f"{prefix}/" if prefix else ""
            names = (path.removeprefix(f"{bucket_path}/") for path in cast(Any, self._files.find(start)))
            found = [name for name in names if name.startswith(below)]
        return sorted(found)


def _is_temporary(name: str) -> bool:
    return any(part.startswith(TEMPORARY_PREFIX) for part in name.split("/"))
