"""Datasets from outside: every format they come in is read, and every flaw is named with its sample."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import webdataset
from PIL import Image

from shared.errors import UserError
from shared.shards.reader import count_samples, iter_samples
from shared.tasks.labels import UNLABELLED, ClassNumbers
from tests.shared.samples import batch, shard

GRAY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
COLOR = np.stack([GRAY, 255 - GRAY, GRAY // 2], -1)


def encoded(pixels: np.ndarray, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path: Path, shape: tuple[int, int, int] = (1, 5, 7), **options: Any) -> tuple[np.ndarray, np.ndarray]:
    (samples,) = iter_samples([path], shape, **options)
    return samples


def error_of(path: Path, shape: tuple[int, int, int] = (1, 5, 7), **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        list(iter_samples([path], shape, **options))
    return caught.value


def test_a_tar_of_stock_webdataset_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stock.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(3):
            writer.write({"__key__": f"sub/{i:03d}", "png": Image.fromarray(COLOR + np.uint8(i)), "cls": i})
    images, targets = read(path, (3, 5, 7), require_labels=True)
    np.testing.assert_array_equal(images[2], (COLOR + np.uint8(2)).transpose(2, 0, 1))
    np.testing.assert_array_equal(targets, [0, 1, 2])


@pytest.mark.parametrize("extension", ["png", "PNG", "webp", "jpg", "jpeg"])
def test_picture_formats(tmp_path: Path, extension: str) -> None:
    name = {"jpg": "jpeg"}.get(extension.lower(), extension)
    options = {"lossless": True} if name == "webp" else {}
    images, targets = read(tar_of(tmp_path / "a.tar", {f"x.{extension}": encoded(COLOR, name, **options)}), (3, 5, 7))
    if name != "jpeg":
        np.testing.assert_array_equal(images[0], COLOR.transpose(2, 0, 1))
    assert images.shape == (1, 3, 5, 7)
    assert targets.tolist() == [UNLABELLED]


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(tmp_path: Path, order: Literal["C", "F"]) -> None:
    array = np.asarray(np.arange(2 * 5 * 7, dtype=np.uint8).reshape(2, 5, 7), order=order)
    images, _ = read(tar_of(tmp_path / "a.tar", {"x.npy": npy(array)}), (2, 5, 7))
    np.testing.assert_array_equal(images[0], array)


def test_gray_and_color_are_converted_to_what_the_teacher_takes(tmp_path: Path) -> None:
    gray, _ = read(tar_of(tmp_path / "a.tar", {"x.png": encoded(COLOR, "png")}), (1, 5, 7))
    np.testing.assert_array_equal(gray[0, 0], np.asarray(Image.fromarray(COLOR).convert("L")))
    color, _ = read(tar_of(tmp_path / "b.tar", {"x.png": encoded(GRAY, "png")}), (3, 5, 7))
    np.testing.assert_array_equal(color[0], np.stack([GRAY] * 3))


def test_other_members_are_skipped(tmp_path: Path) -> None:
    members = {
        "README": b"no extension",
        "./a.json": b"{}",
        "./a.png": encoded(GRAY, "png"),
        "./a.cls": b" 4\n",
        "./a.thumbnail.png": b"another field",
    }
    images, targets = read(tar_of(tmp_path / "a.tar", members))
    assert len(images) == 1
    assert targets.tolist() == [4]


def test_batches_run_across_tars_and_keep_their_content(tmp_path: Path) -> None:
    first, second = batch(5, seed=1), batch(6, seed=2)
    paths = [shard(tmp_path, first, index=0)[0], shard(tmp_path, second, index=1)[0]]
    batches = list(iter_samples(paths, (1, 5, 7), batch_size=4))
    assert [len(part.images) for part in batches] == [4, 4, 3]
    np.testing.assert_array_equal(
        np.concatenate([part.images for part in batches]), np.concatenate([first.images, second.images])
    )


def test_wrong_size_names_the_sample_and_both_sizes(tmp_path: Path) -> None:
    error = error_of(tar_of(tmp_path / "a.tar", {"cat/7.png": encoded(GRAY, "png")}), (1, 32, 16))
    assert error.code == "dataset_wrong_image_size"
    assert "cat/7.png" in error.message
    assert "5×7" in error.message
    assert "32×16" in error.message


def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = encoded(np.zeros((8000, 8000), np.uint8), "png")
    assert error_of(tar_of(tmp_path / "a.tar", {"x.png": bomb})).code == "dataset_wrong_image_size"


def test_an_array_that_claims_a_huge_shape_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)})
    assert error_of(tar_of(tmp_path / "a.tar", {"x.npy": header.getvalue()})).code == "dataset_wrong_image_size"


@pytest.mark.parametrize(
    ("members", "options", "code"),
    [
        ({"x.cls": b"1"}, {}, "dataset_without_images"),
        ({"x.txt": b"1"}, {}, "dataset_without_images"),
        ({}, {}, "dataset_without_images"),
        ({"x.png": b"not a png"}, {}, "unreadable_dataset"),
        ({"x.png": encoded(GRAY, "png")[:-30]}, {}, "unreadable_dataset"),
        ({"x.png": encoded(GRAY.astype(np.uint16) * 256, "png")}, {}, "unreadable_dataset"),
        ({"x.npy": b"\x93NUMPY\x09\x00"}, {}, "unreadable_dataset"),
        ({"x.npy": npy(GRAY[None])[:-1]}, {}, "unreadable_dataset"),
        ({"x.npy": npy(GRAY[None].astype(np.float32))}, {}, "unreadable_dataset"),
        ({"x.npy": npy(np.array([{}], dtype=object))}, {}, "unreadable_dataset"),
        ({"x.npy": npy(GRAY)}, {}, "dataset_wrong_image_size"),
        ({"x.png": encoded(GRAY, "png")}, {"require_labels": True}, "dataset_without_labels"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b"cat"}, {}, "unreadable_dataset"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b"-1"}, {}, "dataset_label_out_of_range"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b"9223372036854775808"}, {}, "dataset_label_out_of_range"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b"-99999999999999999999"}, {}, "dataset_label_out_of_range"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b"9" * 5000}, {}, "unreadable_dataset"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": "٣".encode()}, {}, "unreadable_dataset"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b""}, {}, "unreadable_dataset"),
        ({"x.png": encoded(GRAY, "png"), "x.cls": b"10"}, {"labels": ClassNumbers(10)}, "dataset_label_out_of_range"),
        ({"x.png": encoded(GRAY, "png")}, {"shape": (5, 5, 7)}, "image_format_cannot_hold_channels"),
    ],
)
def test_flaws_have_codes(tmp_path: Path, members: dict[str, bytes], options: dict[str, Any], code: str) -> None:
    error = error_of(tar_of(tmp_path / "data.tar", members), **options)
    assert error.code == code
    assert "data.tar" in error.message


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.tar"
    path.write_bytes(content)
    assert error_of(path).code == "unreadable_dataset"


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path, _ = shard(tmp_path, batch(6))
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[9].offset
    data = bytearray(path.read_bytes())
    data[offset + 5] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 9, "tarfile stops without a word"
    assert error_of(path).code == "unreadable_dataset"


def test_a_tar_cut_inside_a_member_is_unreadable(tmp_path: Path) -> None:
    path, _ = shard(tmp_path, batch(6))
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[9].offset_data + 10
    path.write_bytes(path.read_bytes()[:cut])
    assert error_of(path).code == "unreadable_dataset"


def test_a_tar_cut_between_two_members_is_unreadable(tmp_path: Path) -> None:
    path, _ = shard(tmp_path, batch(6))
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[9].offset
    path.write_bytes(path.read_bytes()[:cut])
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 9, "tarfile, and so webdataset, takes it for whole"
    assert "cut short" in error_of(path).message
    assert error_of(path).code == "unreadable_dataset"


def test_tars_that_were_joined_are_refused(tmp_path: Path) -> None:
    path, _ = shard(tmp_path, batch(6))
    path.write_bytes(path.read_bytes() * 2)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 18, "tarfile, and so webdataset, reads the first alone"
    assert "one by one" in error_of(path).message


def test_zeros_after_the_end_are_part_of_it(tmp_path: Path) -> None:
    path, _ = shard(tmp_path, batch(6))
    path.write_bytes(path.read_bytes() + bytes(3_000_000))
    assert len(read(path)[0]) == 6


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_for_an_image_is_refused_by_name_and_another_is_skipped(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "data.tar"
    picture = encoded(GRAY, "png")
    for name in ("latest", "b.json", "b.png"):
        with tarfile.open(path, "w") as tar:
            image = tarfile.TarInfo("a.png")
            image.size = len(picture)
            tar.addfile(image, io.BytesIO(picture))
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            tar.addfile(link)
        if name == "b.png":
            assert "b.png is a link to a.png" in error_of(path).message
        else:
            assert len(read(path)[0]) == 1


def test_a_key_that_comes_again_is_refused_by_name(tmp_path: Path) -> None:
    picture = encoded(GRAY, "png")
    apart = tar_of(tmp_path / "apart.tar", {"a.png": picture, "b.png": picture, "a.cls": b"1", "b.cls": b"2"})
    assert "the members of a are not side by side" in error_of(apart).message
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("a.png")
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
    assert "a.png is there twice" in error_of(path).message


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1.0", b"9" * 5000])
def test_a_label_that_nobody_asks_for_is_no_obstacle(tmp_path: Path, label: bytes) -> None:
    path = tar_of(tmp_path / "data.tar", {"x.png": encoded(GRAY, "png"), "x.cls": label})
    _, targets = read(path, read_labels=False)
    assert targets.tolist() == [UNLABELLED]


def test_an_empty_tar_among_others_is_passed_over(tmp_path: Path) -> None:
    full = tar_of(tmp_path / "full.tar", {"x.png": encoded(GRAY, "png")})
    empty = tar_of(tmp_path / "empty.tar", {})
    (samples,) = iter_samples([empty, full, empty], (1, 5, 7))
    assert len(samples.images) == 1
    assert error_of(empty).code == "dataset_without_images"


def test_the_next_tar_is_asked_for_when_the_one_before_has_been_read(tmp_path: Path) -> None:
    def fetched() -> Iterator[Path]:
        for name in ("a", "b"):
            path = tar_of(tmp_path / f"{name}.tar", {f"{name}.png": encoded(GRAY, "png")})
            yield path
            path.unlink()

    (samples,) = iter_samples(fetched(), (1, 5, 7))
    assert len(samples.images) == 2


def test_a_missing_tar_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(iter_samples([tmp_path / "no.tar"], (1, 5, 7)))


def test_samples_are_counted(tmp_path: Path) -> None:
    assert count_samples(shard(tmp_path, batch(11))[0]) == 11


def test_a_cancel_is_heard_in_the_middle_of_a_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"read me {i}": b"" for i in range(100)})
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 50:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(iter_samples([path], (1, 5, 7), check=check))


def test_a_sample_of_many_images_is_held_once(tmp_path: Path) -> None:
    members = {"x.webp": b"no", "x.jpg": b"no", "x.png": encoded(GRAY, "png"), "x.npy": b"no", "x.png.png": b"no"}
    images, _ = read(tar_of(tmp_path / "a.tar", members))
    np.testing.assert_array_equal(images[0, 0], GRAY)


def test_batches_of_large_images_are_small(tmp_path: Path) -> None:
    shape = (64, 512, 512)
    path = tar_of(tmp_path / "a.tar", {f"{i}.npy": npy(np.zeros(shape, np.uint8)) for i in range(17)})
    assert [len(samples.images) for samples in iter_samples([path], shape)] == [16, 1]
