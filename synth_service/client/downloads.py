"""Files from the API to a local folder. A file appears under its name whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Final

from synth_service.client.connection import Connection, Request, backoff
from synth_service.client.errors import DamagedDownload, ServerUnreachable

PARTIAL_CONTENT: Final = 206


class NewFile:
    """A file that is written beside its place, hashed on the way, and takes its place by ``commit``.

    Args:
        target: its place; the folder is made if it is missing.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._temporary = target.with_name(f".tmp-{secrets.token_hex(8)}")
        self._file = self._temporary.open("wb")
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Adds to it."""
        self._digest.update(chunk)
        self._file.write(chunk)
        self.size_bytes += len(chunk)

    def restart(self) -> None:
        """Empties it."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def commit(self, sha256: str | None = None) -> None:
        """Puts it into its place. Raises DamagedDownload, and does not, if its sha256 is known to be another."""
        found = self._digest.hexdigest()
        if sha256 not in (None, found):
            raise DamagedDownload(f"{self._target.name}: sha256 is {found}, announced was {sha256}")
        self._file.close()
        self._temporary.replace(self._target)

    def discard(self) -> None:
        """Removes what was not put into its place."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


async def download(connection: Connection, request: Request, target: Path, *, sha256: str | None = None) -> None:
    """Stores the answer to a request under ``target``; a download that was cut goes on where it was cut.

    Raises:
        DamagedDownload: what arrived has another sha256.
        ServerUnreachable, ApiError: as ``Connection.send``.
        OSError: the file cannot be written.
    """
    file = NewFile(target)
    failures, version = 0, ""
    try:
        while True:
            so_far = file.size_bytes
            # If-Range: of a file that was replaced meanwhile, all of it is sent.
            going_on = {"Range": f"bytes={so_far}-", "If-Range": version} if so_far and version else {}
            try:
                async with connection.stream(replace(request, headers={**request.headers, **going_on})) as answer:
                    if answer.status_code != PARTIAL_CONTENT:
                        file.restart()
                    version = answer.headers.get("ETag", "")
                    async for chunk in connection.chunks(answer):
                        file.write(chunk)
                break
            except ServerUnreachable:
                failures = failures + 1 if file.size_bytes <= so_far else 0
                if failures > connection.retries:
                    raise
                await connection.sleep(backoff(failures))
        file.commit(sha256)
    finally:
        file.discard()
