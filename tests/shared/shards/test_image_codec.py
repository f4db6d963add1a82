"""Images of strangers: nothing but the promised formats is opened, and sizes are known before memory is taken."""

import contextlib
import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import UserError
from shared.shards.image_codec import decode_image


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def refusal(data: bytes, extension: str = "png", shape: tuple[int, int, int] = (1, 5, 7)) -> UserError:
    with pytest.raises(UserError) as caught:
        decode_image(data, extension, shape, f"x.{extension}")
    return caught.value


@pytest.mark.parametrize("form", ["ICO", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "EPS", "JPEG2000"])
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_a_file_that_is_something_else_inside_is_refused(form: str, extension: str) -> None:
    error = refusal(saved(Image.new("RGB", (7, 5)), form), extension)
    assert error.code == "unreadable_dataset"
    assert "image inside" in error.message


def test_ghostscript_is_never_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "was-here"
    fake = tmp_path / "gs"
    fake.write_text(f"#!/bin/sh\ntouch {trace}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 5\n%%EndComments\n(x) print\n")
    assert not trace.exists()


def webp_that_claims(width: int, height: int, kind: bytes) -> bytes:
    whole = bytearray(saved(Image.new("RGBA", (7, 5), (1, 2, 3, 4)), "WEBP", exact=True, lossless=kind == b"VP8L"))
    at = whole.index(kind)
    if kind == b"VP8X":
        whole[at + 12 : at + 15] = (width - 1).to_bytes(3, "little")
        whole[at + 15 : at + 18] = (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(whole[at + 9 : at + 13], "little") >> 28 << 28
        whole[at + 9 : at + 13] = (bits | (height - 1) << 14 | (width - 1)).to_bytes(4, "little")
    return bytes(whole)


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L"])
def test_a_webp_of_another_size_is_refused_before_pillow_sees_it(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    assert refusal(webp_that_claims(16_000, 16_000, kind), "webp").code == "dataset_wrong_image_size"


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    whole = saved(Image.new("L", (7, 5)), "JPEG", progressive=True)
    start = whole.index(b"\xff\xda")
    scans = whole[:start] + whole[start:-2] * 1000 + whole[-2:]
    assert "scans" in refusal(scans, "jpg").message


def npy_of(header: bytes, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header


@pytest.mark.parametrize(
    "header",
    [
        b"(",
        b"-" * 9_000 + b"1",
        b"(" * 9_000,
        b"[" * 9_000,
        b"{" * 9_000,
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"1," * 4_000 + b")}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 5_000 + b",)}",
        b"{'descr': '|u1', 'fortran_order': False}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 5, 7)}",
        b"\xff" * 100,
        b"",
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_header_that_a_parser_would_choke_on_is_refused(header: bytes, version: int) -> None:
    assert refusal(npy_of(header, version), "npy").code in ("unreadable_dataset", "dataset_wrong_image_size")


def test_an_npy_that_claims_a_huge_header_takes_no_memory() -> None:
    tracemalloc.start()
    refusal(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "npy")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_of_every_version_that_numpy_writes_are_read(version: tuple[int, int]) -> None:
    array = np.arange(35, dtype=np.uint8).reshape(1, 5, 7)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "npy", (1, 5, 7), "x.npy"), array)


def test_damage_anywhere_in_a_picture_is_a_refusal_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    for extension, form in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")):
        whole = saved(noise, form)
        for _ in range(150):
            data = bytearray(whole)
            for place in random.integers(0, len(data), random.integers(1, 6)):
                data[place] = random.integers(0, 256)
            with contextlib.suppress(UserError):  # anything else fails the test
                assert decode_image(bytes(data), extension, (3, 5, 7), "x").shape == (3, 5, 7)
