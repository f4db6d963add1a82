"""Hostile checkpoints: files that cost a reader far more than their own length, or that two readers read differently.

Pickles are written instruction by instruction, since ``pickle.dumps`` does not write what an attacker would.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache

FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."


# -- pickles ------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    """A string."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """An integer of any size below 2^2039."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(*values: int) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(*shape: int, key: str = "0", elements: int = 4) -> bytes:
    """A float32 tensor of this shape over a storage of so many elements, whatever the shape says."""
    storage = b"(" + text("storage") + FLOATS + text(key) + text("cpu") + number(elements) + b"tQ"
    strides = numbers(*(1 for _ in shape))
    return REBUILD + b"(" + storage + number(0) + numbers(*shape) + strides + b"\x89}tR"


def mapping(items: Mapping[str, bytes]) -> bytes:
    """A dictionary whose values are written already."""
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def pickled(value: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + value + b"."


GOOD = pickled(mapping({"fc.weight": tensor(2, 2)}))
ITSELF = pickled(b"}q\x00" + text("state_dict") + b"h\x00s")
"""``content["state_dict"] is content``."""


# -- the files around them ----------------------------------------------------------------------------


def archive(
    data: bytes, extra: Mapping[str, bytes] | None = None, *, method: int = zipfile.ZIP_STORED, folder: str = "archive"
) -> bytes:
    """A checkpoint of today's format. Names in ``extra`` are written as they are, also twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(f"{folder}/data.pkl", data)
        file.writestr(f"{folder}/version", b"3\n")
        file.writestr(f"{folder}/data/0", bytes(16))
        for name, content in (extra or {}).items():
            file.writestr(name, content)
    return buffer.getvalue()


def legacy(data: bytes) -> bytes:
    """A checkpoint of before torch 1.6, whose storages have one more field: whether they are parts of others."""
    return (
        LEGACY_HEAD + data.replace(b"tQ", b"NtQ") + b"\x80\x02]" + text("0") + b"a." + struct.pack("<Q", 4) + bytes(16)
    )


def safetensors(header: str | bytes, data: bytes = bytes(8)) -> bytes:
    """A safetensors file with this header."""
    written = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(written)) + written + data


def entry(shape: object, begin: int = 0, end: int = 8, dtype: str = "U8") -> dict[str, object]:
    """What a safetensors header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def with_field(whole: bytes, signature: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    """The file with other bytes at a place in its first or last structure of this signature."""
    at = (whole.rindex if last else whole.index)(signature) + offset
    return whole[:at] + value + whole[at + len(value) :]


def directory_of_a_million() -> bytes:
    """Nothing but a central directory of 1,000,000 entries, deflated by nobody: 47 MB."""
    one = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 1_000_000
    begin = len(archive(GOOD))
    head = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, count * len(one), begin)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, begin + count * len(one), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive(GOOD) + one * count + head + locator + end


def bomb(method: int, inner_bytes: int = 60_000_000) -> bytes:
    """A data.pkl of zeros that unpacks to a thousand times its size; the directory says that it is small."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, file.open("archive/data.pkl", "w", force_zip64=False) as member:
        for _ in range(inner_bytes // 1_000_000):
            member.write(bytes(1_000_000))
    whole = buffer.getvalue()
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        whole = with_field(whole, signature, offset, struct.pack("<L", 1000))
    return whole


def _pickles() -> dict[str, bytes]:
    deep = 300_000
    return {
        "contains itself": ITSELF,
        "two that contain each other": pickled(b"}q\x00}q\x01" + text("model") + b"h\x00s" + text("net") + b"h\x01s"),
        "contains itself under every key": pickled(
            b"}q\x00(" + b"".join(text(key) + b"h\x00" for key in ("state_dict", "model", "net", "network")) + b"u"
        ),
        "wrapped a thousand times": pickled(b"}" + (text("model") + b"}") * 1000 + b"s" * 1000),
        "nested lists": pickled(b"]" * deep + b"a" * (deep - 1)),
        "nested tuples": pickled(b")" + b"\x85" * deep),
        "a nested tuple as key": pickled(b"})" + b"\x85" * deep + b"K\x01s"),
        "a list that holds itself": pickled(b"]q\x00h\x00a"),
        "colliding numbers as keys": pickled(
            b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(40_000)) + b"u"
        ),
        "floats as keys": pickled(b"}(" + b"".join(b"G" + struct.pack(">d", k) + b"N" for k in range(9_000)) + b"u"),
        "bytes of a thousand sizes as keys": pickled(
            b"}(" + b"".join(number(k) + b"N" for k in range(2**20, 2**21, 64)) + b"u"
        ),
        "many objects": pickled(b"}" * 2_000_000),
        "many tensors of one": pickled(
            tensor(1) + b"q\x00}(" + b"".join(text(str(n)) + b"h\x00" for n in range(90_000)) + b"u"
        ),
        "names of fifteen megabytes": pickled(mapping({f"{n:05d}" + "x" * 3000: tensor(1) for n in range(2_000)})),
        "a name of four megabytes": pickled(mapping({"x" * 4_000_000: tensor(1)})),
        "a lone surrogate in a name": pickled(mapping({"a\ud800": tensor(1)})),
        "a terminal's commands in a name": pickled(mapping({"\x1b]52;c;aGk=\x07": tensor(1)})),
        "right to left in a name": pickled(mapping({"a\u202egnp.weight": tensor(1)})),
        "sizes of a thousand bits": pickled(mapping({"a": tensor(*[2**1000] * 32)})),
        "negative sizes": pickled(mapping({"a": tensor(-1, -1)})),
        "sizes beyond 64 bits": pickled(mapping({"a": tensor(2**40, 2**40)})),
        "a hundred dimensions": pickled(mapping({"a": tensor(*[1] * 100)})),
        "a size that is no number": pickled(mapping({"a": REBUILD + b"(NK\x00(G" + bytes(8) + b"t)\x89}tR"})),
        "a shape that its storage has not": pickled(mapping({"a": tensor(1000, 1000)})),
        "a storage that is not there": pickled(mapping({"a": tensor(2, key="77")})),
        "a bytearray of ten gigabytes": pickled(
            mapping({"a": tensor(2), "b": b"c__builtin__\nbytearray\n" + b"(" + number(10**10) + b"tR"})
        ),
        "a storage of ten gigabytes": pickled(mapping({"b": FLOATS + b"(" + number(10**10) + b"tR"})),
        "copies of a list": pickled(
            b"]q\x00(" + b"]" * 90_000 + b"e" + b"ccollections\nOrderedDict\nh\x00\x85R" * 90_000
        ),
        "wide calls": pickled(
            b"(" + b"K\x01" * 200_000 + b"tq\x00" + b"ctorch._utils\n_rebuild_tensor\nh\x00R" * 60_000
        ),
        "runs os.system": pickled(b"cos\nsystem\n" + text("true") + b"\x85R"),
        "runs eval": pickled(b"c__builtin__\neval\n" + text("1") + b"\x85R"),
        "imports by dots": pickled(b"ctorch\n_utils.os.system\n" + text("true") + b"\x85R"),
        "imports a module of torch": pickled(b"ctorch.hub\nload\n" + text("x") + b"\x85R"),
        "a name of a megabyte to import": pickled(b"c" + b"x" * 1_000_000 + b"\ny\n"),
        "pops an empty stack": pickled(b"0000"),
        "recalls what was never remembered": pickled(b"h\x07"),
        "no end": b"\x80\x02}",
        "protocol 4": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        "a string of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc",
        "an unknown instruction": b"\x80\x02\xfe.",
    }


def _archives() -> dict[str, bytes]:
    good = archive(GOOD)
    return {
        "DATA.PKL beside data.pkl": archive(GOOD, {"archive/DATA.PKL": ITSELF}),
        "data.pkl beside DATA.PKL": archive(ITSELF, {"archive/DATA.PKL": GOOD}),
        "Data.pkl in another folder's case": archive(GOOD, {"ARCHIVE/data.pkl": ITSELF}),
        "CONSTANTS.PKL": archive(GOOD, {"archive/CONSTANTS.PKL": pickled(b")")}),
        "a name with a zero": with_field(
            with_field(archive(GOOD, {"archive/data_pkl": ITSELF}), b"archive/data_pkl", 12, b"\0"),
            b"archive/data_pkl",
            12,
            b"\0",
        ),
        "an encrypted member": with_field(good, b"PK\x01\x02", 8, b"\x01\x00"),
        "bzip2": archive(GOOD, method=zipfile.ZIP_BZIP2),
        "lzma": archive(GOOD, method=zipfile.ZIP_LZMA),
        "a bzip2 bomb": bomb(zipfile.ZIP_BZIP2),
        "a deflate bomb": bomb(zipfile.ZIP_DEFLATED),
        "a million entries": directory_of_a_million(),
        "a directory of another archive after it": good + archive(ITSELF),
        "something before it": b"PK\x03\x04" + bytes(60) + good,
        "a comment": with_field(good, b"PK\x05\x06", 20, b"\x08\x00") + b"PK\x05\x06----",
        "a directory that is not where it says": with_field(good, b"PK\x05\x06", 16, struct.pack("<L", 7)),
        "more entries than there are": with_field(good, b"PK\x05\x06", 8, struct.pack("<2H", 9999, 9999)),
        "another checksum": with_field(good, b"PK\x01\x02", 16, struct.pack("<L", zlib.crc32(b"x"))),
        "a member beyond the end": with_field(good, b"PK\x01\x02", 42, struct.pack("<L", 2**31)),
        "a member of four gigabytes": with_field(good, b"PK\x01\x02", 20, struct.pack("<2L", 2**32 - 2, 2**32 - 2)),
        "no folder": archive(GOOD, folder=""),
        "a folder of dots": archive(GOOD, folder="../../.."),
        "nothing in it": b"PK\x05\x06" + bytes(18),
    }


def _headers() -> dict[str, str]:
    many = {f"t{n}": entry([1], n, n + 1) for n in range(30_000)}
    return {
        "an empty list five million times": '{"a":[' + "[]," * 1_300_000 + "[]]}",
        "an object a million times": '{"a":[' + "{}," * 900_000 + "{}]}",
        "a million numbers": '{"a":[' + "1," * 1_900_000 + "1]}",
        "thirty thousand tensors": json.dumps(many),
        "sizes of a thousand bits": json.dumps({"a": entry([2**1000] * 32)}),
        "a million sizes": json.dumps({"a": entry([1] * 300_000)}),
        "a number of a million digits": '{"a":{"dtype":"U8","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,8]}}',
        "negative sizes": json.dumps({"a": entry([-8, -1])}),
        "true as a size": json.dumps({"a": entry([True, 8])}),
        "a size that is a text": json.dumps({"a": entry(["8"])}),
        "a name of a megabyte": json.dumps({"x" * 1_000_000: entry([8])}),
        "a lone surrogate in a name": '{"a\\ud800":' + json.dumps(entry([8])) + "}",
        "a raw surrogate in a name": '{"a\ud800":' + json.dumps(entry([8])) + "}",
        "a terminal's commands in a name": json.dumps({"\x1b[2J": entry([8])}),
        "offsets that overlap": json.dumps({"a": entry([8]), "b": entry([8])}),
        "offsets backwards": json.dumps({"a": entry([8], 8, 0)}),
        "offsets that are texts": json.dumps({"a": {"dtype": "U8", "shape": [8], "data_offsets": ["0", "8"]}}),
        "a dtype that is a list": json.dumps({"a": {"dtype": [], "shape": [8], "data_offsets": [0, 8]}}),
        "metadata that is a number": json.dumps({"__metadata__": 7, "a": entry([8])}),
        "nested ten thousand deep": '{"a":' + "[" * 9_000 + "]" * 9_000 + "}",
    }  # fmt: skip


@cache
def checkpoints() -> dict[str, bytes]:
    """All hostile checkpoints by what they are; each begins like a checkpoint of its format."""
    found = {f"zip: {what}": archive(data) for what, data in _pickles().items()}
    # The legacy form is read by another part of torch; those that tell the two apart are enough.
    found |= {f"legacy: {what}": legacy(data) for what, data in _pickles().items() if not what.startswith("name")}
    found |= {f"zip: {what}": whole for what, whole in _archives().items()}
    found |= {f"safetensors: {what}": safetensors(header) for what, header in _headers().items()}
    found["safetensors: a header of sixteen exabytes"] = struct.pack("<Q", 2**63) + b"{"
    found["safetensors: longer than its file"] = safetensors("{}")[:9]
    return found
