"""A stranger's zip archive, of which every reader sees the same members and nobody unpacks more than a limit.

torch reads archives with miniz, Python with ``zipfile``; they differ in which of two equal names counts, whether the
case of a name matters, and where the directory is looked for. What they would read differently is refused here: the
directory has to end the file, and no two names may differ in case alone. The directory is read with a limit on its
entries, and content is unpacked up to a limit, whatever sizes are declared.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

MAX_MEMBERS: Final = 50_000
MAX_DIRECTORY_BYTES: Final = 8 * 1024 * 1024
MAX_EXPANSION: Final = 32
"""All members together may be this many times as large as the file: weights hardly compress."""

STORED: Final = 0
DEFLATED: Final = 8
ENCRYPTED: Final = 0x0041

_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_UNKNOWN: Final = 0xFFFFFFFF


class DamagedArchive(ValueError):
    """It is no zip archive, or none that all readers would read alike."""


class Member(NamedTuple):
    """A file in the archive, as the directory declares it."""

    name: str
    method: int
    crc32: int
    stored_bytes: int
    declared_bytes: int
    offset: int


class ZipArchive:
    """The members of a local archive.

    Args:
        path: of the file.

    Raises:
        DamagedArchive: see the module.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            self.members = _members(file, file_bytes)
        self._by_name = {member.name.lower(): member for member in self.members}
        if len(self._by_name) < len(self.members):
            raise DamagedArchive("two of its members have the same name, but for upper and lower case")
        if sum(member.declared_bytes for member in self.members) > MAX_EXPANSION * file_bytes + MAX_DIRECTORY_BYTES:
            raise DamagedArchive(f"its members would unpack to more than {MAX_EXPANSION} times its size")

    def find(self, name: str) -> Member | None:
        """The member of this name, in whatever case."""
        return self._by_name.get(name.lower())

    def read(self, member: Member, limit: int) -> bytes:
        """Its content.

        Raises:
            DamagedArchive: it is longer than ``limit``, or not what the directory says.
        """
        with self._path.open("rb") as file:
            file.seek(member.offset)
            head = file.read(_LOCAL.size)
            if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
                raise DamagedArchive(f"{member.name[:100]!a} does not lie where its directory says")
            *_, name_bytes, extra_bytes = _LOCAL.unpack(head)
            file.seek(name_bytes + extra_bytes, 1)
            stored = file.read(min(member.stored_bytes, limit + 1))
        content = stored
        if member.method == DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, limit + 1)
            except zlib.error as error:
                raise DamagedArchive(f"{member.name[:100]!a} in it is damaged ({error})") from None
        if len(content) > limit:
            raise DamagedArchive(f"its {member.name[-100:]!a} is larger than {limit:,} bytes")
        if len(content) != member.declared_bytes or zlib.crc32(content) != member.crc32:
            raise DamagedArchive(f"{member.name[:100]!a} in it is damaged or cut short")
        return content


def _members(file: BinaryIO, file_bytes: int) -> list[Member]:
    begin, length, count = _directory(file, file_bytes)
    file.seek(begin)
    directory = file.read(length)
    found = []
    place = 0
    for _ in range(count):
        if place + _ENTRY.size > len(directory) or directory[place : place + 4] != b"PK\x01\x02":
            raise DamagedArchive("its directory is damaged")
        fields = _ENTRY.unpack_from(directory, place)
        flags, method, crc32, stored, declared = fields[3], fields[4], *fields[7:10]
        name_bytes, extra_bytes, comment_bytes, offset = *fields[10:13], fields[16]
        place += _ENTRY.size
        name = directory[place : place + name_bytes]
        extra = directory[place + name_bytes : place + name_bytes + extra_bytes]
        place += name_bytes + extra_bytes + comment_bytes
        if _UNKNOWN in (stored, declared, offset):
            declared, stored, offset = _large(extra, declared, stored, offset)
        shown = ascii(name[:100].decode(errors="replace"))
        # torch ends a name at its first zero, and others do not.
        if b"\0" in name or flags & ENCRYPTED or method not in (STORED, DEFLATED):
            raise DamagedArchive(f"{shown} in it is encrypted, or neither stored nor deflated")
        if offset + stored > begin or (method == STORED and stored != declared):
            raise DamagedArchive(f"{shown} in it claims what the file does not have")
        found.append(Member(name.decode(errors="replace"), method, crc32, stored, declared, offset))
    if place != length:
        raise DamagedArchive("its directory is damaged")
    return found


def _directory(file: BinaryIO, file_bytes: int) -> tuple[int, int, int]:
    """Where the directory begins, its length and the number of its entries."""
    tail_bytes = min(file_bytes, _END64.size + _LOCATOR64.size + _END.size)
    file.seek(file_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise DamagedArchive("its zip archive is damaged or cut short: its directory is not at its end")
    end = file_bytes - _END.size
    _, disk, first_disk, here, count, length, begin, comment_bytes = _END.unpack(tail[-_END.size :])
    locator = tail[-_END.size - _LOCATOR64.size : -_END.size]
    if locator[:4] == b"PK\x06\x07":
        end -= _LOCATOR64.size + _END64.size
        _, _, place, _ = _LOCATOR64.unpack(locator)
        if place != end or tail[:4] != b"PK\x06\x06":
            raise DamagedArchive("its directory is damaged")
        *_, disk, first_disk, here, count, length, begin = _END64.unpack(tail[: _END64.size])
    if disk or first_disk or here != count or comment_bytes or begin + length != end:
        raise DamagedArchive("its directory is damaged, or something lies around it")
    if count > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise DamagedArchive(f"it has more than {MAX_MEMBERS:,} members")
    return begin, length, count


def _large(extra: bytes, declared: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Sizes and places of 64 bits, in the order in which the format has them."""
    values = [declared, stored, offset]
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            for position, value in enumerate(values):
                if value == _UNKNOWN and len(content) >= 8:
                    (values[position],) = struct.unpack_from("<Q", content)
                    content = content[8:]
            break
    return values[0], values[1], values[2]
