"""A tar that is taken apart while it arrives, in pieces of any size, onto no disk.

``tarfile`` wants to read a file; here bytes are pushed in and members come out. Only regular files and folders are
known: the archive of a dataset has nothing else, and a link is how a tar would write elsewhere.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from shared.shards.tar_members import BLOCK_BYTES, MAX_EXTENSION_BYTES, pax_fields
from synth_service.client.errors import DamagedDownload


class Start(NamedTuple):
    """A file begins."""

    name: str
    size_bytes: int


class End(NamedTuple):
    """The file that began last is complete."""


class TarReader:
    """Push bytes into ``feed``; ``close`` says whether that was all.

    Raises:
        DamagedDownload: from either, if this is no tar, or one with other members, or one that was cut short.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._content_left = 0
        self._padding_left = 0
        self._is_file = False
        self._is_extension = False
        self._extension = bytearray()
        self._overrides: dict[str, str] = {}
        self._is_over = False

    def feed(self, chunk: bytes) -> Iterator[Start | bytes | End]:
        """What these bytes bring: files that begin, parts of their content, files that end."""
        self._buffer += chunk
        while self._buffer and not self._is_over:
            if self._content_left:
                part = self._take(self._content_left)
                self._content_left -= len(part)
                if self._is_extension:
                    self._extension += part
                elif self._is_file:
                    yield part
                if not self._content_left:
                    yield from self._finish()
            elif self._padding_left:
                self._padding_left -= len(self._take(self._padding_left))
            elif len(self._buffer) >= BLOCK_BYTES:
                yield from self._header(self._take(BLOCK_BYTES))
            else:
                return
        if self._is_over:
            self._buffer.clear()

    def close(self) -> None:
        """Call at the end of the bytes."""
        if not self._is_over:
            raise DamagedDownload("the archive was cut short")

    def _take(self, most: int) -> bytes:
        part = bytes(self._buffer[:most])
        del self._buffer[: len(part)]
        return part

    def _header(self, block: bytes) -> Iterator[Start | End]:
        if not any(block):
            self._is_over = True
            return
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise DamagedDownload(f"the archive is damaged ({error})") from None
        name, size = member.name, member.size
        self._is_extension = member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)
        self._is_file = member.isreg()
        if self._is_extension:
            if size > MAX_EXTENSION_BYTES:
                raise DamagedDownload("the archive has an oversized header")
            self._extension.clear()
        elif self._is_file or member.isdir():
            name = self._overrides.pop("path", name)
            size = _size(self._overrides.pop("size", str(size))) if self._is_file else 0
            self._overrides.clear()
        else:
            raise DamagedDownload(f"the archive has a member `{name}` that is neither a file nor a folder")
        if size < 0:
            raise DamagedDownload(f"the archive has a member `{name}` of negative size")
        self._content_left = size
        self._padding_left = -size % BLOCK_BYTES
        if self._is_file:
            yield Start(name, size)
            if not size:
                yield End()

    def _finish(self) -> Iterator[End]:
        if self._is_file:
            yield End()
        elif self._is_extension:
            try:
                self._overrides = pax_fields(bytes(self._extension))
            except ValueError as error:
                raise DamagedDownload(f"the archive is damaged ({error})") from None


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DamagedDownload(f"the archive has a member of size {text[:20]!r}") from None
