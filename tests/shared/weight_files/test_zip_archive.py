"""Archives that every reader reads alike, and no others."""

import contextlib
import random
import zipfile
from pathlib import Path

import pytest
import torch

from shared.weight_files.zip_archive import MAX_MEMBERS, DamagedArchive, ZipArchive
from tests.attack.checkpoints import GOOD, ITSELF, archive, checkpoints


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zip"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_members_are_those_that_zipfile_and_torch_read(path: Path, method: int) -> None:
    path.write_bytes(archive(GOOD, {"archive/byteorder": b"little"}, method=method))
    ours = ZipArchive(path)
    with zipfile.ZipFile(path) as theirs:
        assert [member.name for member in ours.members] == theirs.namelist()
        for member in ours.members:
            assert ours.read(member, 10_000) == theirs.read(member.name)
    torch_reader = torch._C.PyTorchFileReader(str(path))
    assert torch_reader.get_record("data.pkl") == GOOD
    assert ours.find("ARCHIVE/DATA.PKL") == ours.find("archive/data.pkl") is not None


def test_archives_that_torch_writes_are_read(path: Path) -> None:
    torch.save({str(n): torch.zeros(n) for n in range(100)}, path)
    ours = ZipArchive(path)
    assert len(ours.members) > 100
    with zipfile.ZipFile(path) as theirs:
        assert [member.offset for member in ours.members] == [each.header_offset for each in theirs.infolist()]


DIFFERENTLY = (
    "zip: DATA.PKL beside data.pkl",
    "zip: data.pkl beside DATA.PKL",
    "zip: Data.pkl in another folder's case",
    "zip: a name with a zero",
    "zip: an encrypted member",
    "zip: bzip2",
    "zip: lzma",
    "zip: something before it",
    "zip: a comment",
    "zip: a directory that is not where it says",
    "zip: a directory of another archive after it",
    "zip: more entries than there are",
    "zip: a million entries",
    "zip: a member beyond the end",
    "zip: a member of four gigabytes",
)


@pytest.mark.parametrize("what", DIFFERENTLY)
def test_what_readers_read_differently_is_refused(path: Path, what: str) -> None:
    path.write_bytes(checkpoints()[what])
    with pytest.raises(DamagedArchive):
        ZipArchive(path)


def test_two_members_of_one_name_are_refused(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path.write_bytes(archive(GOOD, {"archive/data.pkl": ITSELF}))
    with pytest.raises(DamagedArchive, match="same name"):
        ZipArchive(path)


@pytest.mark.parametrize("declared", [0, 10, 4_000_000])
def test_no_more_is_unpacked_than_asked_for_whatever_is_declared(path: Path, declared: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", random.Random(0).randbytes(1000) + bytes(100_000))
    ours = ZipArchive(path)
    with pytest.raises(DamagedArchive, match="larger than 5,000"):
        ours.read(ours.members[0]._replace(declared_bytes=declared), 5_000)


def test_there_is_a_limit_to_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for n in range(MAX_MEMBERS + 1):
            file.writestr(str(n), b"")
    with pytest.raises(DamagedArchive, match="members"):
        ZipArchive(path)


def test_damage_anywhere_is_a_refusal(path: Path) -> None:
    whole = archive(GOOD)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(DamagedArchive):  # anything else fails the test
            ours = ZipArchive(path)
            member = ours.find("archive/data.pkl")
            if member is not None:
                assert ours.read(member, 10_000) == GOOD
