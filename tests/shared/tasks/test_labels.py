from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shared.errors import UserError
from shared.tasks.labels import ClassMaps
from shared.tasks.palette import color_of

SHAPE = (3, 5, 7)
MAP = (np.arange(35).reshape(5, 7) % 4).astype(np.uint8)


def png(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], mode: str | None = None) -> dict[str, bytes]:
    picture = Image.fromarray(array)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, "PNG")
    return {"seg.png": buffer.getvalue()}


def test_a_map_comes_back_as_it_was_and_shows_the_classes_colors() -> None:
    labels = ClassMaps(4, 255)
    members = labels.encode(MAP)
    assert np.array_equal(labels.decode(members, SHAPE, "x"), MAP)
    picture = Image.open(io.BytesIO(members["seg.png"]))
    assert picture.mode == "P"
    assert picture.convert("RGB").getpixel((1, 0)) == color_of(1) == (128, 0, 0)


def test_beyond_256_values_a_map_has_16_bits() -> None:
    labels = ClassMaps(1000, 65_535)
    wide = MAP.astype(np.int32) * 300
    wide[0, 0] = 65_535
    decoded = labels.decode(labels.encode(wide), SHAPE, "x")
    assert np.array_equal(decoded, wide)


@pytest.mark.parametrize("mode", [None, "P"])
def test_gray_and_palette_pictures_are_read_alike(mode: str | None) -> None:
    if mode == "P":
        picture = Image.fromarray(MAP, "L").convert("P", palette=Image.Palette.WEB)
        picture.putdata(MAP.flatten().tolist())
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        members = {"seg.png": buffer.getvalue()}
    else:
        members = png(MAP)
    assert np.array_equal(ClassMaps(4, 255).decode(members, SHAPE, "x"), MAP)


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        (
            png(MAP + 2),
            "dataset_label_out_of_range",
            r"x\.seg\.png holds 4 \(row 0, column 2, .*below teacher.num_classes",
        ),
        (png(np.stack([MAP] * 3, -1)), "unreadable_dataset", "colors, not class numbers"),
        (png(MAP[:4]), "dataset_wrong_image_size", "4×7 and its image 5×7"),
        ({"seg.png": b"no picture"}, "unreadable_dataset", "no readable PNG"),
    ],
)
def test_what_is_wrong_with_a_map_is_said(members: dict[str, bytes], code: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        ClassMaps(4, 255).decode(members, SHAPE, "x")
    assert error.value.code == code


def test_unknown_pixels_are_allowed_and_not_counted() -> None:
    labels = ClassMaps(4, 255)
    holed = MAP.copy()
    holed[0] = 255
    assert np.array_equal(labels.decode(labels.encode(holed), SHAPE, "x"), holed)
    assert sum(labels.count(holed).values()) == 28
    assert set(labels.count(holed)) == {0, 1, 2, 3}
