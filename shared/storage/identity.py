"""Whether what lies at the storage root is the storage of this deployment.

A volume that is not mounted looks like an empty folder, in which every file is missing; the wrong volume looks like
one whose files have been deleted. So the root holds a marker file with an id, and Redis holds the same id. They are
compared before a worker claims a task, before anything is called missing and before a local file is written. The API
makes the marker with the first job or model, and in a root that holds files and none; a worker makes one only where
files are and the server knows of no storage. An empty root may always be the mount point of a volume that is away.
"""

from __future__ import annotations

import re
import secrets
from typing import Protocol

import structlog

from shared.storage.names import MARKER
from shared.storage.outages import StorageUnavailable
from shared.storage.root import Storage

logger = structlog.get_logger()

_ID = re.compile(r"[0-9a-f]{32}")


class Record(Protocol):
    """What a server knows of the storage: ``shared.broker.storage_record``."""

    def get(self) -> str | None: ...  # noqa: D102 -- see there
    def record(self, storage_id: str) -> str: ...  # noqa: D102
    def replace(self, storage_id: str) -> None: ...  # noqa: D102
    def has_files(self) -> bool: ...  # noqa: D102


class StorageIdentity:
    """Compares marker and record; from its making on, ``storage`` asks it before it calls a file missing.

    Args:
        storage: of the deployment.
        record: of the server that the jobs are in.
    """

    def __init__(self, storage: Storage, record: Record) -> None:
        self._record = record
        self._root = storage.root
        # One that is asked while it is asked: reading the marker must not ask for the marker.
        self._plain = Storage(storage.root, create=False)
        self._expected: str | None = None
        storage.confirm = self.confirm

    def compare(self, *, adopts: bool = False) -> None:
        """Learns what the record says and compares.

        Args:
            adopts: marks a root that holds files and no marker, such as one that was restored or copied. For the API.

        Raises:
            StorageUnavailable: the storage is away, or this is another one.
            redis.RedisError: the server cannot be asked.
        """
        self._plain.check_present()
        self._expected = self._recorded()
        if self._expected is None:
            return
        if adopts and self._marker() is None and self._plain.list():
            self._mark(self._expected)
        self.confirm()

    def establish(self, *, in_empty_root: bool) -> None:
        """Compares, and first makes record and marker where they are missing.

        Args:
            in_empty_root: also where no file is; for whoever is about to put the first there.

        Raises:
            StorageUnavailable, redis.RedisError: as ``compare``.
        """
        self.compare(adopts=in_empty_root)
        if self._expected is not None:
            return
        found = self._marker()
        if found is None and not (in_empty_root or self._plain.list()):
            return
        wanted = found or secrets.token_hex(16)
        if self._record.get() is not None:
            self._record.replace(wanted)
        self._expected = self._record.record(wanted)  # another process may have been faster
        if found != self._expected:
            self._mark(self._expected)

    def confirm(self) -> None:
        """Returns when the storage is the right one, as far as that is known.

        Raises:
            StorageUnavailable: it is away, or this is another one.
        """
        if self._expected is None:
            # It may be known by now: another process made the first job, or the server was away at the start.
            self._expected = self._learned()
        if self._expected is None:
            return
        found = self._marker()
        if found == self._expected:
            return
        what = "holds no marker" if found is None else f"is marked {found}"
        raise StorageUnavailable(
            f"the storage root {self._root} is not the one of this deployment: it {what}, where {MARKER} should say "
            f"{self._expected}. Mount the volume, or correct DFKD_STORAGE. If the folder is right, write that id there"
        )

    def _mark(self, storage_id: str) -> None:
        self._plain.put_bytes(storage_id.encode(), MARKER)
        logger.info("storage_marked", storage=self._root, id=storage_id)

    def _recorded(self) -> str | None:
        """The id that the marker must hold; None where nothing would be lost with another storage."""
        recorded = self._record.get()
        return recorded if recorded is None or recorded == self._marker() or self._record.has_files() else None

    def _learned(self) -> str | None:
        try:
            return self._recorded()
        except StorageUnavailable:
            raise
        except Exception:  # the server is away, in whatever way; then nothing is known
            return None

    def _marker(self) -> str | None:
        try:
            text = self._plain.read_bytes(MARKER).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        return text if _ID.fullmatch(text) else None
