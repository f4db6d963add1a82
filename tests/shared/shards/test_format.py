"""The shard format: same samples, same bytes; nothing damaged is ever read; full disks leave nothing."""

import hashlib
import json
import subprocess
import sys
import tarfile
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import UserError
from shared.shards.format import DamagedShard, SampleBatch, discard, read_shard, seal, stage, verify_shard, write_shard
from shared.shards.manifest import ImageFormat, ShardManifest
from shared.storage import Storage
from tests.shared.samples import JOB, batch, shard


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_gives_back_the_same_pixels(tmp_path: Path, channels: int) -> None:
    samples = batch(6, channels=channels)
    images, targets = read_shard(*shard(tmp_path, samples))
    np.testing.assert_array_equal(images, samples.images)
    np.testing.assert_array_equal(targets, samples.targets)


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_npy_holds_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    samples = batch(4, channels=channels)
    images, _ = read_shard(*shard(tmp_path, samples, image_format="npy"))
    np.testing.assert_array_equal(images, samples.images)


def test_jpg_gives_back_nearly_the_same_pixels(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(1, 3, 16, 16).astype(np.uint8)
    samples = replace(batch(1, channels=3, height=16, width=16), images=smooth)
    images, _ = read_shard(*shard(tmp_path, samples, image_format="jpg"))
    assert np.abs(images.astype(int) - smooth).max() <= 6


@pytest.mark.parametrize(("image_format", "channels"), [("png", 2), ("png", 5), ("jpg", 4), ("jpg", 2)])
def test_a_format_that_cannot_hold_the_channels_names_npy(
    tmp_path: Path, image_format: ImageFormat, channels: int
) -> None:
    with pytest.raises(UserError, match="npy") as caught:
        shard(tmp_path, batch(2, channels=channels), image_format=image_format)
    assert caught.value.code == "image_format_cannot_hold_channels"


def test_same_samples_give_the_same_bytes_whenever_and_whoever_wrote_them(tmp_path: Path) -> None:
    first, manifest = shard(tmp_path / "a", batch(6), attempt=1, created_at=1.0)
    second, other = shard(tmp_path / "b", batch(6), attempt=2, created_at=2.0)
    assert first.name != second.name
    assert first.read_bytes() == second.read_bytes()
    assert manifest.sha256 == other.sha256


def test_members_are_image_label_record_with_nothing_of_the_machine(tmp_path: Path) -> None:
    samples = batch(2)
    path, _ = shard(tmp_path, samples, index=7)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        contents = [content.read() for member in members if (content := tar.extractfile(member))]
    key = f"{JOB}-00-000007-000001"
    assert [member.name for member in members[3:]] == [f"{key}.png", f"{key}.cls", f"{key}.json"]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.gname) for m in members} == {(0, 0, 0, 0o644, "root", "root")}
    assert contents[4] == b"1"
    assert json.loads(contents[5]) == {
        "round": 0,
        "student_version": 0,
        "target": 1,
        "teacher_confidence": pytest.approx(float(samples.described["teacher_confidence"][1]), abs=5e-7),
        "teacher_top1": int(samples.described["teacher_top1"][1]),
    }
    assert list(json.loads(contents[5])) == sorted(json.loads(contents[5]))


def test_a_sure_teacher_is_written_as_a_decimal_number(tmp_path: Path) -> None:
    path, _ = shard(tmp_path, replace(batch(1), described={"teacher_confidence": np.ones(1)}))
    assert b'"teacher_confidence":1.000000' in path.read_bytes()


def test_several_batches_run_through_in_one_shard(tmp_path: Path) -> None:
    first, second = batch(4, seed=1), batch(5, seed=9)
    path, manifest = shard(tmp_path, first, second)
    images, targets = read_shard(path, manifest)
    np.testing.assert_array_equal(images, np.concatenate([first.images, second.images]))
    np.testing.assert_array_equal(targets, np.concatenate([first.targets, second.targets]))
    with tarfile.open(path) as tar:
        keys = [name.split(".")[0] for name in tar.getnames()[::3]]
        rounds = [json.load(each)["round"] for name in tar.getnames()[2::3] if (each := tar.extractfile(name))]
    assert keys == [f"{JOB}-00-000000-{i:06d}" for i in range(9)]
    assert rounds == [1] * 4 + [9] * 5
    assert manifest.images == 9
    assert manifest.student_version == 9


def test_the_manifest_describes_the_file(tmp_path: Path) -> None:
    path, manifest = shard(tmp_path, batch(7, channels=3), index=3, attempt=2, partition=1)
    data = path.read_bytes()
    assert path.name == manifest.name == f"{JOB}-01-000003-02.tar"
    assert manifest.sidecar_name == f"{JOB}-01-000003-02.json"
    assert manifest.bytes == len(data)
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    assert manifest.class_counts == {0: 3, 1: 2, 2: 2}
    assert manifest.shape == (3, 5, 7)
    assert ShardManifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_truncation_at_a_member_boundary_is_caught(tmp_path: Path) -> None:
    path, manifest = shard(tmp_path, batch(6))
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:cut])
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 6, "the tar alone reads as valid"
    for read in (verify_shard, read_shard):
        with pytest.raises(DamagedShard) as caught:
            read(path, manifest)
        assert caught.value.reason == "wrong_size"


def test_every_flipped_bit_is_caught(tmp_path: Path) -> None:
    path, manifest = shard(tmp_path, batch(1))
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedShard) as caught:
            verify_shard(path, manifest)
        assert caught.value.reason == "wrong_sha256"


def test_a_missing_shard_is_damage_too(tmp_path: Path) -> None:
    path, manifest = shard(tmp_path)
    path.unlink()
    with pytest.raises(DamagedShard) as caught:
        verify_shard(path, manifest)
    assert caught.value.reason == "missing"


@pytest.mark.parametrize("promised", [5, 7])
def test_another_number_of_images_than_promised_is_caught(tmp_path: Path, promised: int) -> None:
    path, manifest = shard(tmp_path, batch(6))
    for read in (verify_shard, read_shard):
        with pytest.raises(DamagedShard) as caught:
            read(path, manifest.model_copy(update={"images": promised}))
        assert caught.value.reason == "wrong_image_count"


def test_a_whole_shard_verifies(tmp_path: Path) -> None:
    verify_shard(*shard(tmp_path, batch(6)))


def test_a_sealed_shard_lies_beside_its_manifest_and_can_be_discarded(storage: Storage, tmp_path: Path) -> None:
    path, manifest = shard(tmp_path / "local", batch(6))
    stage(storage, "staging", path, manifest)
    seal(storage, "staging", "jobs/a/shards", manifest)
    assert list((tmp_path / "local").iterdir()) == []
    tar, sidecar = f"jobs/a/shards/{manifest.name}", f"jobs/a/shards/{manifest.sidecar_name}"
    assert storage.list() == sorted([tar, sidecar])
    assert ShardManifest.model_validate_json(storage.read_bytes(sidecar)) == manifest
    sealed = storage.local_path(tar)
    assert sealed is not None
    verify_shard(sealed, manifest)
    discard(storage, "jobs/a/shards", manifest)
    assert storage.list() == []


def test_a_full_disk_leaves_no_half_written_shard(tmp_path: Path) -> None:
    script = f"""
        import resource
        from pathlib import Path
        from tests.shared.samples import batch, shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            shard(Path({str(tmp_path)!r}), batch(500, height=16, width=16))
        except OSError:
            raise SystemExit(0)
        raise SystemExit("no error")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"targets": np.zeros(5, np.int64)},
        {"images": np.zeros((6, 1, 5, 7), np.float32)},
        {"images": np.zeros((6, 5, 7), np.uint8)},
        {"described": {"teacher_confidence": np.full(6, np.nan)}},
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"uint8 images|finite"):
        replace(batch(6), **change)


def test_images_of_two_shapes_are_refused_in_one_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same shape"):
        shard(tmp_path, batch(2), batch(2, height=6))
    assert list(tmp_path.iterdir()) == []


def test_a_job_id_with_a_dot_is_refused(tmp_path: Path) -> None:
    """The key of a sample ends at the first dot."""
    with pytest.raises(ValueError, match="job"):
        write_shard(
            tmp_path, [batch(2)], job="a.b", partition=0, index=0, attempt=0, first_image=0, image_format="png",
            created_at=0.0,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_shards_of_a_size_can_hold_more_than_one_read_batch(tmp_path: Path) -> None:
    samples: SampleBatch = batch(2100, height=4, width=4)
    images, targets = read_shard(*shard(tmp_path, samples))
    np.testing.assert_array_equal(images, samples.images)
    np.testing.assert_array_equal(targets, samples.targets)
