"""Hostile datasets: tars, pictures, arrays and labels that cost a reader far more than their own length."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np
from PIL import Image

SHAPE: Final = (1, 16, 16)
"""Of the images that jobs over these datasets ask for: those of the digits teacher."""


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header, whatever follows it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    """Content in whole blocks."""
    return content + bytes(-len(content) % 512)


def pax(fields: Mapping[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header with these fields."""
    lines = b""
    for key, value in fields.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        lines += str(length).encode() + line
    return member("pax", len(lines), kind) + padded(lines)


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """An ordinary tar."""
    return b"".join(member(name, len(content)) + padded(content) for name, content in members.items()) + bytes(1024)


def picture(form: str, size: tuple[int, int] = (16, 16), **options: object) -> bytes:
    """A grey picture of any format."""
    buffer = io.BytesIO()
    Image.new("RGB" if form in ("EPS", "WEBP", "JPEG2000", "PCX") else "L", size).save(buffer, form, **options)
    return buffer.getvalue()


def array(header: bytes, values: bytes = bytes(256)) -> bytes:
    """An npy file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


GOOD_ARRAY: Final = array(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 16, 16), }".ljust(117) + b"\n")


@cache
def good_shard() -> bytes:
    """One that a job trains on: all else here is a variation of it."""
    noise = np.random.default_rng(0).integers(0, 256, (64, *SHAPE), dtype=np.uint8)
    members: dict[str, bytes] = {}
    for n, image in enumerate(noise):
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        members |= {f"{n:03d}.png": buffer.getvalue(), f"{n:03d}.cls": b"%d" % (n % 10)}
    return tar_of(members)


def _tars() -> dict[str, bytes]:
    sparse = bytearray(member("a.png", 512, tarfile.GNUTYPE_SPARSE))
    sparse[483:495] = b"00077777777\0"
    sparse[148:156] = b" " * 8
    sparse[148:156] = f"{sum(sparse):06o}\0 ".encode()
    return {
        "empty": b"",
        "no tar": b"hello" * 300,
        "compressed": b"\x1f\x8b\x08" + bytes(600),
        "cut short": good_shard()[:5000],
        "damaged in the middle": good_shard()[:2048] + b"\xff" * 512 + good_shard()[2560:],
        "a sparse member": bytes(sparse) + bytes(512),
        "a sparse member of pax": pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)})
        + member("a.png", 512)
        + padded(b"1\n0\n1\n"),
        "a header of three gigabytes": member("pax", 3 * 1024**3, tarfile.XHDTYPE) + bytes(4096),
        "a name of three gigabytes": member("name", 3 * 1024**3, tarfile.GNUTYPE_LONGNAME) + bytes(4096),
        "a chain of headers": pax({"comment": "x"}) * 5_000 + member("a.cls", 0),
        "a chain of global headers": pax({"comment": "x"}, tarfile.XGLTYPE) * 5_000 + member("a.cls", 0),
        "a size of a million digits": member("pax", 1_000_020, tarfile.XHDTYPE)
        + padded(b"1000020 size=" + b"9" * 1_000_007),
        "a negative size": pax({"size": "-512"}) + member("a.png", 512) + bytes(512),
        "a size beyond the file": member("a.png", 8 * 1024**3 - 1) + bytes(512),
        "a million empty members": b"".join(member(f"{n}", 0) for n in range(20_000)) * 5,
        "links": member("a.png", 0, tarfile.SYMTYPE) + member("b.png", 0, tarfile.LNKTYPE) + bytes(1024),
        "a name of a megabyte": member("name", 60_000, tarfile.GNUTYPE_LONGNAME)
        + padded(b"a" * 59_000)
        + member("a", 0),
    }  # fmt: skip


def _images() -> dict[str, tuple[str, bytes]]:
    jpeg = picture("JPEG", progressive=True)
    scan = jpeg.index(b"\xff\xda")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(x) print\n"
    return {
        "EPS": ("png", eps),
        "ICO": ("png", picture("ICO")),
        "GIF": ("jpg", picture("GIF")),
        "TIFF": ("webp", picture("TIFF")),
        "JPEG 2000": ("png", picture("JPEG2000")),
        "PCX": ("png", picture("PCX")),
        "another size": ("png", picture("PNG", (17, 16))),
        "a picture of eight thousand pixels": ("png", picture("PNG", (8000, 8000))),
        "a thousand scans": ("jpg", jpeg[:scan] + jpeg[scan:-2] * 1000 + jpeg[-2:]),
        "cut short": ("png", picture("PNG")[:40]),
        "nothing": ("webp", b""),
        "a WebP that claims another size": ("webp", picture("WEBP", (15, 16))),
        "an npy header of one bracket": ("npy", array(b"(")),
        "an npy header of minus signs": ("npy", array(b"-" * 9_000 + b"1")),
        "an npy header of brackets": ("npy", array(b"[" * 9_000)),
        "an npy of objects": ("npy", array(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")),
        "an npy of a huge shape": ("npy", array(b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % 2**60)),
        "an npy header that is not there": ("npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"),
    }


def _labels() -> dict[str, bytes]:
    return {
        "2^63": b"9223372036854775808",
        "five thousand digits": b"9" * 5_000,
        "below zero": b"-1",
        "beyond the classes": b"10",
        "no number": b"cat",
        "digits of another script": "٣".encode(),
        "nothing": b"",
        "a terminal's commands": b"\x1b]52;c;aGk=\x07",
    }


@cache
def datasets() -> dict[str, bytes]:
    """All hostile datasets by what they are."""
    found = {f"tar: {what}": content for what, content in _tars().items()}
    for what, (extension, content) in _images().items():
        found[f"image: {what}"] = tar_of({f"a.{extension}": content, "a.cls": b"1"})
    for what, content in _labels().items():
        found[f"label: {what}"] = tar_of({"a.npy": GOOD_ARRAY, "a.cls": content})
    found["name: a terminal's commands"] = tar_of({"\x1b]52;c;aGk=\x07.png": b"no", "a.cls": b"1"})
    return found
