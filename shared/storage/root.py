"""One storage root, a local folder or an ``s3://`` address; names below it are relative POSIX paths.

Three promises carry everything above. *Atomic*: a name either holds the whole content or does not exist; a
full disk or a kill at any moment leaves at worst a ``.tmp-*`` file, which no listing shows and
``remove_stale_temporaries`` clears away. *Confined*: no name, whatever a client wrote, reaches outside
the root, also not through a symbolic link. *Honest*: only a storage that answers and is the right one says that a
file is missing (``FileNotFoundError``); when it is away, that is ``StorageUnavailable``.

Credentials and endpoint of S3 come from the environment as with every AWS tool (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``).
"""

from __future__ import annotations

import copy
import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeVar

from shared.storage import durable_files
from shared.storage.durable_files import is_full
from shared.storage.local_files import LocalFiles
from shared.storage.names import PathOutsideStorage, check_name, is_listed
from shared.storage.object_store import ObjectStore, is_refusal
from shared.storage.outages import IN_THE_WAY, StorageRefused, StorageUnavailable, reason, says_no_such_file

Names = list[str]
"""Inside the class, ``list`` is the method."""

Result = TypeVar("Result")


class Wait(Protocol):
    """How a patient storage waits."""

    def failed(self, error: OSError, times: int) -> None:
        """Called after each failure, which is the so-manieth in a row: pauses; raises when waiting is to end."""

    def is_over(self) -> None:
        """Called once the storage works again."""


class Storage:
    """Files below one root.

    Args:
        root: a local folder or ``s3://bucket[/prefix]``.
        create: make the local folder if it is missing. A bucket is never created.

    Methods that take a ``name`` raise ``PathOutsideStorage`` for one that leaves the root, ``FileNotFoundError``
    where they need a file that is not there, ``StorageUnavailable`` when the storage is away, and an ``OSError`` of
    which ``is_full`` is true when there is no room. A ``patient`` storage waits instead of raising the last two.
    """

    def __init__(self, root: str, *, create: bool = True) -> None:
        protocol = root.split("://", 1)[0] if "://" in root else None
        if protocol not in (None, "s3"):
            raise ValueError(f"storage root {root!r}: give a local folder or s3://bucket/prefix")
        self._files: LocalFiles | ObjectStore
        if protocol is None:
            folder = Path(root).expanduser().absolute()
            if create:
                durable_files.make_folder(folder)
            self.root = str(folder)
            self._files = LocalFiles(folder)
        else:
            self.root = root.rstrip("/")
            self._files = ObjectStore(self.root)
        self._wait: Wait | None = None
        self.confirm: Callable[[], None] = lambda: None
        """Called before anything is said to be missing, and before a local file is written: raises
        ``StorageUnavailable`` when what lies at the root is not the storage of this deployment."""

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def patient(self, wait: Wait) -> Storage:
        """The same storage, whose methods try again for as long as it is away or full."""
        patient = copy.copy(self)
        patient._wait = wait
        return patient

    def impatient(self) -> Storage:
        """The same storage, whose methods raise at once: for what may as well not be stored."""
        impatient = copy.copy(self)
        impatient._wait = None
        return impatient

    # Reading

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name that can be read; a folder is none."""
        try:
            self._read(name, lambda: self._files.probe(name))
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._read(name, lambda: self._files.size(name))

    def open(self, name: str) -> BinaryIO:
        """A file for reading, seekable. Close it."""
        return self._read(name, lambda: self._files.open(name))

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file."""

        def read() -> bytes:
            with self._files.open(name) as file:
                return file.read()

        return self._read(name, read)

    def list(self, prefix: str = "") -> Names:
        """Sorted names of all files in a folder and below it; of everything without one."""
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of all files in a folder and below it, by sorted name; on object storage from the listing alone."""
        if prefix:
            check_name(prefix)
        try:
            found = self._run(prefix, lambda: self._files.sizes(prefix))
        except FileNotFoundError:
            return {}
        return {name: found[name] for name in sorted(found) if is_listed(name)}

    def local_path(self, name: str) -> Path | None:
        """Where the file lies on this machine, present or not; None on object storage."""
        check_name(name)
        return self._files.path(name) if isinstance(self._files, LocalFiles) else None

    def fetch(self, name: str, folder: Path) -> Path:
        """A local path of the file: itself when it is local, or else a copy in ``folder``.

        A copy appears under its last name part, whole or not at all, and is the caller's to delete;
        ``local_path(name) is None`` tells that it is one.
        """
        path = self.local_path(name)
        if path is not None:
            self.open(name).close()
            return path
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / PurePosixPath(name).name
        self._read(name, lambda: durable_files.publish(target, lambda path: self._files.download(name, path)))
        return target

    @contextmanager
    def fetched(self, name: str, folder: Path) -> Iterator[Path]:
        """A local path of the file for as long as the block lasts; what ``fetch`` had to copy goes after it."""
        path = self.fetch(name, folder)
        try:
            yield path
        finally:
            if self.local_path(name) is None:
                path.unlink(missing_ok=True)

    def download(self, name: str, target: Path) -> None:
        """Copies a file into a local one, as it goes: what fails leaves half a copy."""
        self._read(name, lambda: self._files.download(name, target))

    def entity_tag(self, name: str) -> str:
        """Changes with the content of an object; of a local file, with its size and time of change."""
        return self._read(name, lambda: self._files.entity_tag(name))

    # Writing

    def put_bytes(self, data: bytes, name: str) -> None:
        """Store ``data`` under ``name``, atomically and durably; replaces what was there."""
        self._write(name, lambda: self._files.put_bytes(data, name))

    def put_file(self, local: Path, name: str, *, move: bool = False) -> None:
        """Store a local file under ``name``, atomically and durably; replaces what was there.

        Args:
            local: file to store.
            name: where to.
            move: give the local file up. On the same disk it is renamed instead of copied. It is gone
                only after the new name is durable.
        """
        local.stat()  # that this one is missing is nothing to wait for
        self._write(name, lambda: self._files.put_file(local, name, move=move))

    def move(self, source: str, name: str) -> None:
        """Give a file another name, atomically; done already is done.

        On object storage the copy appears first, and the old name goes after it.
        """
        check_name(source)

        def confirmed() -> None:
            if isinstance(self._files, LocalFiles):
                self.confirm()  # before a folder is made for it; see ``_write``
            self._files.move(source, name)

        self._read(name, confirmed)

    def delete(self, name: str) -> None:
        """Remove a file; no error when it is gone already, so that a repeated clean-up succeeds."""
        with suppress(FileNotFoundError):
            self._read(name, lambda: self._files.delete(name))

    def delete_tree(self, prefix: str) -> None:
        """Remove a folder and everything in it; no error when there is none.

        A local folder vanishes from its name in one step. On object storage the objects go one after
        another, and a repeated call finishes what a crash left.
        """
        with suppress(FileNotFoundError):
            self._read(prefix, lambda: self._files.delete_tree(prefix))

    def remove_stale_temporaries(self, prefix: str = "", *, older_than_seconds: float) -> int:
        """Remove what killed writers left below a folder and return how many entries that were.

        A living writer's file is younger, since every write renews its time. Object storage never shows
        an unfinished upload; let a lifecycle rule of the bucket expire those.
        """
        if prefix:
            check_name(prefix)
        return self._run(prefix, lambda: self._files.remove_stale_temporaries(prefix, older_than_seconds))

    # State of the storage itself

    def check_present(self) -> None:
        """Raises ``StorageUnavailable`` when there is no folder at a local root; it is never made later."""
        if isinstance(self._files, LocalFiles) and not Path(self.root).is_dir():
            raise StorageUnavailable(f"the storage root {self.root} is gone; mount it, or correct DFKD_STORAGE")

    def check_writable(self) -> None:
        """Write a small file and remove it again; raises what real work would meet."""
        probe = f"write-probe-{secrets.token_hex(8)}"
        self.put_bytes(b"ok", probe)
        self.delete(probe)

    def free_bytes(self) -> int | None:
        """Bytes that may still be written; None where there is no such number."""
        return self._run("", self._files.free_bytes)

    # Every call to the files goes through one of these

    def _read(self, name: str, call: Callable[[], Result]) -> Result:
        check_name(name)
        return self._run(name, call)

    def _write(self, name: str, call: Callable[[], Result]) -> Result:
        check_name(name)

        def confirmed() -> Result:
            if isinstance(self._files, LocalFiles):
                # Written into the empty folder of a disk that is not mounted, a file would be lost and in the way.
                self.confirm()
            try:
                return call()
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise StorageUnavailable(f"the storage root {self.root} is gone ({reason(error)})") from error
                raise

        return self._run(name, confirmed)

    def _run(self, name: str, call: Callable[[], Result]) -> Result:
        """Calls, and tells a file that is missing from a storage that is away or full; waits if it is patient."""
        failures = 0
        while True:
            try:
                result = self._attempt(name, call)
            except FileNotFoundError:
                if failures and self._wait is not None:
                    self._wait.is_over()
                raise
            except OSError as failure:
                if self._wait is None:
                    raise
                failures += 1
                self._wait.failed(failure, failures)
            else:
                if failures and self._wait is not None:
                    self._wait.is_over()
                return result

    def _attempt(self, name: str, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except PathOutsideStorage:
            raise
        except Exception as error:
            meaning = self._meaning(error, name)
            if meaning is error:
                raise
            raise meaning from error

    def _meaning(self, error: Exception, name: str) -> OSError:
        """What an error of the files says, as one of three: missing, full or away."""
        if isinstance(error, OSError) and (isinstance(error, StorageUnavailable) or is_full(error)):
            return error
        if isinstance(error, OSError) and isinstance(self._files, LocalFiles) and error.errno in IN_THE_WAY:
            return error
        if says_no_such_file(error):
            try:
                self.confirm()
            except StorageUnavailable as away:
                return away
            return FileNotFoundError(errno.ENOENT, "no such file in the storage", name)
        # Whatever a driver raises beside these says nothing of the file; an S3 driver has dozens with no common base.
        what = f" with `{name}`" if name else ""
        if isinstance(self._files, ObjectStore) and is_refusal(error):
            return StorageRefused(
                f"the storage {self.root} refuses this process{what} ({reason(error)}); its credentials are those of "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or of its AWS profile or role, and need the rights that "
                "docs/deployment.md lists"
            )
        return StorageUnavailable(f"the storage {self.root} cannot be used{what} ({reason(error)})")
