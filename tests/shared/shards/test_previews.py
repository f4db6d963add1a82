import io

import numpy as np
import pytest
from PIL import Image

from shared.shards.previews import Strip, Tile, decode_strip, draw_grid, encode_strip, merged


def strip(*targets: int, size: tuple[int, int, int] = (4, 3, 3), seed: int = 0) -> Strip:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(targets), *size), dtype=np.uint8)
    return Strip(*size, tuple(Tile(target, image.tobytes()) for target, image in zip(targets, pixels, strict=True)))


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("size", [(4, 3, 3), (8, 8, 1)])
def test_a_strip_is_a_picture_of_its_tiles_and_comes_back_as_it_was(size: tuple[int, int, int]) -> None:
    made = strip(7, 0, 7, size=size)
    data = encode_strip(made)
    assert decode_strip(data) == made
    assert pixels_of(data).tobytes() == b"".join(tile.pixels for tile in made.tiles)


@pytest.mark.parametrize("damage", [b"", b"GIF89a", "cut", "foreign"])
def test_what_is_no_strip_is_refused(damage: bytes | str) -> None:
    data = damage if isinstance(damage, bytes) else encode_strip(strip(1))[:60]
    if damage == "foreign":
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, "PNG")
        data = buffer.getvalue()
    with pytest.raises(ValueError, match=r"PNG|strip|encode_strip"):
        decode_strip(data)


def test_a_grid_shows_the_tiles_enlarged_from_left_to_right() -> None:
    made = strip(0, 1, 2, size=(24, 16, 3))
    grid = pixels_of(draw_grid(made, columns=2))
    assert grid.shape == (2 + 2 * (48 + 2), 2 + 2 * (32 + 2), 3)
    for place, (top, left) in enumerate([(2, 2), (2, 36), (52, 2)]):
        shown = grid[top : top + 48, left : left + 32]
        tile = np.frombuffer(made.tiles[place].pixels, np.uint8).reshape(24, 16, 3)
        assert np.array_equal(shown, tile.repeat(2, 0).repeat(2, 1))
    assert (grid[52:, 36:] == 255).all()


def test_strips_are_merged_in_turn_and_by_class() -> None:
    first, second = strip(1, 2, 1), strip(3, 1, seed=1)
    both = merged([first, second], target=None, most=4)
    assert both is not None
    assert both.tiles == (first.tiles[0], second.tiles[0], first.tiles[1], second.tiles[1])
    ones = merged([first, second], target=1, most=9)
    assert ones is not None
    assert ones.tiles == (first.tiles[0], second.tiles[1], first.tiles[2])
    assert merged([first], target=9, most=9) is None
    assert merged([], target=None, most=9) is None
