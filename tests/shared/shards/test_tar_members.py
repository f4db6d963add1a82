"""Members of strangers' tars: those that tarfile finds too, and none of the work that a hostile header asks for."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from shared.shards.tar_members import MAX_EXTENSION_BYTES, DamagedTar, TarMember, pax_fields, tar_members


def members_of(path: Path) -> list[TarMember]:
    with path.open("rb") as file:
        return list(tar_members(file, path.stat().st_size))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(fields: dict[str, str]) -> bytes:
    lines = b""
    for key, value in fields.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        lines += str(length).encode() + line
    return lines


def extended(fields: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    lines = pax(fields)
    return header("pax", len(lines), kind) + padded(lines)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, size in (("a.png", 0), ("folder/b.cls", 5), ("x" * 90 + "/" + "é" * 40 + ".npy", 1000)):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(b"7" * size))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("other")
            member.type, member.linkname = kind, "a.png"
            tar.addfile(member)
    with tarfile.open(path) as tar:
        found = [(each.name, each.offset_data, each.size, None) for each in tar if each.isreg()]
        links = [("other", each.offset_data, 0, "a.png") for each in tar if each.issym()]
        assert members_of(path) == [*found, *links]


def test_a_size_beyond_eight_gigabytes_in_an_extended_header_is_held_against_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(extended({"size": "3"}) + header("a.cls", 0) + padded(b"123") + bytes(1024))
    assert members_of(path) == [TarMember("a.cls", 1536, 3)]
    for size in (str(2**62), "-1", "9" * 5000, "1e3", "٣"):
        path.write_bytes(extended({"size": size}) + header("a.cls", 0) + padded(b"123") + bytes(1024))
        with pytest.raises(DamagedTar):
            members_of(path)


def sparse_files() -> list[bytes]:
    gnu = bytearray(header("a.png", 512, tarfile.GNUTYPE_SPARSE))
    gnu[483:495] = b"00077777777\0"  # the size that it claims to have
    gnu[148:156] = b" " * 8
    gnu[148:156] = f"{sum(gnu):06o}\0 ".encode()
    return [
        bytes(gnu) + bytes(512),
        extended({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)})
        + header("a.png", 512)
        + padded(b"1\n0\n1\n"),
        extended({"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)}) + header("a.png", 512) + bytes(512),
        extended({"GNU.sparse.size": str(2**40)}, tarfile.XGLTYPE)
        + extended({"GNU.sparse.map": "0,1"})
        + header("a.png", 512)
        + bytes(512),
    ]


@pytest.mark.parametrize("content", sparse_files(), ids=["gnu", "pax-1.0", "pax-0.1", "global"])
def test_a_sparse_member_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content + bytes(1024))
    with pytest.raises(DamagedTar, match="sparse"):
        members_of(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_huge_extended_header_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("pax", 3 * 1024**3, kind))
        file.truncate(3 * 1024**3 + 4096)  # a hole: nothing lies on the disk
    tracemalloc.start()
    with pytest.raises(DamagedTar, match="longer than"):
        members_of(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_chain_of_extended_headers_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(extended({"comment": "x"}) * 10_000 + header("a.cls", 0))
    with pytest.raises(DamagedTar, match=f"{MAX_EXTENSION_BYTES:,}"):
        members_of(path)


@pytest.mark.parametrize("lines", [b"99 a=b\n", b"0 a=b\n", b"2 a\n", b"x a=b\n", b"9" * 600, b"99999999 path=a\n"])
def test_malformed_fields_are_refused(lines: bytes) -> None:
    with pytest.raises(ValueError, match="length"):
        pax_fields(lines)


def test_what_check_raises_ends_the_walk_at_the_next_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header("a.cls", 0) * 5)
    seen: list[TarMember] = []

    def check() -> None:
        if len(seen) == 2:
            raise InterruptedError

    with path.open("rb") as file, pytest.raises(InterruptedError):
        seen.extend(tar_members(file, path.stat().st_size, check))
    assert len(seen) == 2


def test_a_name_in_no_encoding_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    raw = bytearray(header("a.cls", 0))
    raw[0] = 0xFF
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw):06o}\0 ".encode()
    path = tmp_path / "a.tar"
    path.write_bytes(raw + bytes(1024))
    assert members_of(path)[0].name == "\ufffd.cls"
