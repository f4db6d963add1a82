"""Where the members of a stranger's tar lie, found with bounded memory and without trusting what headers claim.

``tarfile`` reads an extended header whole however long it says it is, follows chains of them by recursion, keeps
every header, and fills the holes of sparse members with zeros that nobody sent. Here one header of 512 bytes is read
at a time, extended headers count against a limit, and sparse members are refused. The only use of ``tarfile`` is to
take a header's 512 bytes apart.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

BLOCK_BYTES: Final = 512
CHUNK_BYTES: Final = 1024 * 1024
MAX_EXTENSION_BYTES: Final = 65_536
"""Of all extended headers of one member together; a path takes a few hundred."""

GLOBAL_HEADER: Final = b"g"
LONG_NAME: Final = b"L"
LONG_LINK: Final = b"K"
PAX_HEADERS: Final = (b"x", b"X")
SPARSE_FIELDS: Final = "GNU.sparse."
EXTENSIONS: Final = (*PAX_HEADERS, GLOBAL_HEADER, LONG_NAME, LONG_LINK)


class DamagedTar(Exception):
    """It is no tar, or one that nobody should read. The message says why and at which byte."""


class TarMember(NamedTuple):
    """A regular file in a tar: its content is ``size`` bytes from ``offset``. Or a link, which has none of its own."""

    name: str
    offset: int
    size: int
    link: str | None = None
    """What a hard or symbolic link stands for."""


def tar_members(file: BinaryIO, file_bytes: int, check: Callable[[], None] = lambda: None) -> Iterator[TarMember]:
    """The regular files and links of an uncompressed tar, in order. Leaves the position of ``file`` anywhere.

    Args:
        file: seekable.
        file_bytes: its length, against which members are held.
        check: called before each header; what it raises ends the walk.

    Raises:
        DamagedTar: there is no valid header where one should be, the file is cut short or does not end as tars end,
            extended headers are too long, or a member is sparse.
    """
    offset = 0
    while True:
        check()
        start = offset
        header, offset, fields = _with_extensions(file, offset, check)
        if header is None:
            _check_end(file, start, file_bytes, check)
            return
        if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(SPARSE_FIELDS) for key in fields):
            raise DamagedTar(f"the member at byte {start} is sparse; pack the files without --sparse")
        name = fields.get("path", header.name)
        size = _number(fields["size"], start) if "size" in fields else header.size
        # A link, folder or device has no content in the archive, whatever its size says.
        length = size if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES else 0
        if length < 0 or offset + length > file_bytes:
            raise DamagedTar(f"the member at byte {start} claims {length:,} bytes, which the file does not have")
        if header.isreg():
            yield TarMember(name, offset, length)
        elif header.issym() or header.islnk():
            yield TarMember(name, offset, 0, header.linkname)
        offset += length + -length % BLOCK_BYTES


def _check_end(file: BinaryIO, end: int, file_bytes: int, check: Callable[[], None]) -> None:
    """An archive ends with a block of zeros, and after it comes nothing but zeros.

    Cut between two members, a tar would else look whole; and of two that were joined with ``cat``, ``tarfile`` and
    ``webdataset`` read the first alone.
    """
    if end >= file_bytes:
        raise DamagedTar(f"it ends at byte {file_bytes:,} without the zeros that end a tar: it was cut short")
    place = end
    file.seek(end)
    while chunk := file.read(CHUNK_BYTES):
        check()
        if any(chunk):
            where = place + len(chunk) - len(chunk.lstrip(b"\0"))
            raise DamagedTar(f"more follows at byte {where:,}, after its end; give tars that were joined one by one")
        place += len(chunk)


def pax_fields(content: bytes) -> dict[str, str]:
    """The fields of an extended header: lines of "length key=value", of which the length counts all.

    Raises:
        ValueError: they are malformed.
    """
    fields: dict[str, str] = {}
    place = 0
    # Padding of zeros may follow.
    while place < len(content) and content[place]:
        digits = content[place : place + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if length < len(digits) + 3 or place + length > len(content):
            raise ValueError("a line of an extended header has no valid length")
        key, _, value = content[place + len(digits) + 1 : place + length - 1].partition(b"=")
        fields[key.decode(errors="replace")] = value.decode(errors="replace")
        place += length
    return fields


def _with_extensions(
    file: BinaryIO, offset: int, check: Callable[[], None]
) -> tuple[tarfile.TarInfo | None, int, Mapping[str, str]]:
    """The next header that is a member's, where its content begins, and what extended headers say of it.

    None at the end of the archive.
    """
    fields: dict[str, str] = {}
    left = MAX_EXTENSION_BYTES
    while True:
        check()
        header = _header(file, offset)
        if header is None and fields:
            raise DamagedTar(f"an extended header at the end, before byte {offset}, belongs to no member")
        offset += BLOCK_BYTES
        if header is None or header.type not in EXTENSIONS:
            return header, offset, fields
        # The header's own block counts too: a chain of empty ones is as long as it likes.
        left -= header.size + BLOCK_BYTES
        if header.size < 0 or left < 0:
            raise DamagedTar(f"the extended headers before byte {offset} are longer than {MAX_EXTENSION_BYTES:,} bytes")
        file.seek(offset)
        content = file.read(header.size)
        if len(content) < header.size:
            raise DamagedTar(f"it is cut short in an extended header at byte {offset}")
        fields |= _fields(header.type, content, offset)
        offset += header.size + -header.size % BLOCK_BYTES


def _fields(kind: bytes, content: bytes, offset: int) -> dict[str, str]:
    try:
        if kind == LONG_NAME:
            return {"path": content.partition(b"\0")[0].decode(errors="replace")}
        if kind == LONG_LINK:
            return {}
        fields = pax_fields(content)
    except ValueError as error:
        raise DamagedTar(f"the extended header at byte {offset} is malformed ({error})") from None
    if kind != GLOBAL_HEADER:
        return fields
    # A name or size for every member is nothing that a real archive says.
    return {key: value for key, value in fields.items() if key.startswith(SPARSE_FIELDS)}


def _header(file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    """The header at this place; None where the archive ends, or the file."""
    file.seek(offset)
    block = file.read(BLOCK_BYTES)
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        where = f"it is damaged at byte {offset}" if offset else "it does not begin with a header"
        raise DamagedTar(f"{where} ({error})") from None


def _number(text: str, offset: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise DamagedTar(f"the member at byte {offset} has the size {text[:20]!r}")
    return int(text)
