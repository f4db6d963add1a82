"""A tar in pieces comes out as it went in, whatever the pieces; nothing but files does."""

import io
import tarfile
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_service.client import DamagedDownload
from synth_service.client.tar_stream import End, Start, TarReader

FILES = {"a.txt": b"", "shards/b.tar": b"x" * 512, "c": b"y" * 1300, "shards/" + "long" * 40 + ".json": b"z" * 511}


def archive(files: dict[str, bytes] = FILES, *, format: int = tarfile.PAX_FORMAT, **fields: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpack(pieces: list[bytes]) -> dict[str, bytes]:
    reader = TarReader()
    files: dict[str, bytes] = {}
    name = ""
    ended = 0
    for piece in pieces:
        for part in reader.feed(piece):
            if isinstance(part, Start):
                name = part.name
                files[name] = b""
            elif isinstance(part, End):
                ended += 1
            else:
                files[name] += part
    reader.close()
    assert ended == len(files)
    return files


@settings(deadline=None)
@given(st.lists(st.integers(0, len(archive())), max_size=30))
def test_any_pieces_give_the_same_files(places: list[int]) -> None:
    content = archive()
    bounds = [0, *sorted(places), len(content)]
    assert unpack([content[a:b] for a, b in pairwise(bounds)]) == FILES


def test_extended_headers_are_understood() -> None:
    # A time with a fraction is written as an extended header of every member.
    assert unpack([archive(mtime=1.5)]) == FILES


def test_folders_bring_nothing() -> None:
    assert unpack([archive({"folder": b""}, type=tarfile.DIRTYPE)]) == {}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    with pytest.raises(DamagedDownload, match="neither a file nor a folder"):
        unpack([archive({"evil": b""}, type=kind, linkname="/etc/passwd")])


@pytest.mark.parametrize("kept", [0, 100, 512, 1000, 2000])
def test_an_archive_that_is_cut_short_is_damaged(kept: int) -> None:
    with pytest.raises(DamagedDownload, match="cut short"):
        unpack([archive()[:kept]])


def test_what_is_no_tar_is_damaged() -> None:
    with pytest.raises(DamagedDownload, match="damaged"):
        unpack([b"<html>" * 200])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"12 path=name", "cut short"),
        (b"0 path=name\n", "damaged"),
        (b"99999 no equals", "member of size|damaged|cut short|neither"),
        (b"17 size=-1000000\n", "negative size"),
    ],
)
def test_odd_extended_headers_are_no_trouble(content: bytes, message: str) -> None:
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, len(content)
    blocks = extended.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    with pytest.raises(DamagedDownload, match=message):
        unpack([blocks + archive({"a": b"b"})[:512]])
