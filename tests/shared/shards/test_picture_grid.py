"""The picture grid: every class its row, every image its place, same images same bytes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.shards.format import seal, stage
from shared.shards.picture_grid import GAP, LABEL_WIDTH, picture_grid, write_grid
from shared.storage import Storage
from tests.shared.samples import batch, shard


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def tile(grid: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    top, left = GAP + row * (size + GAP), LABEL_WIDTH + GAP + column * (size + GAP)
    return grid[top : top + size, left : left + size]


def flat(values: list[int], channels: int = 1, size: int = 16) -> np.ndarray:
    """Images of one gray each."""
    return np.tile(np.array(values, np.uint8)[:, None, None, None], (1, channels, size, size))


def test_rows_are_classes_and_gaps_are_white() -> None:
    grid = pixels(picture_grid(flat([10, 20, 30, 40]), np.array([7, 3, 7, 3]), columns=2))
    assert grid.shape == (2 * 52 + GAP, LABEL_WIDTH + 2 * 52 + GAP)
    for row, column, value in ((0, 0, 20), (0, 1, 40), (1, 0, 10), (1, 1, 30)):
        assert (tile(grid, row, column, 48) == value).all()
    assert (grid[:, LABEL_WIDTH + GAP + 48 : LABEL_WIDTH + 2 * GAP + 48] == 255).all()
    assert (grid[GAP + 48 : 2 * GAP + 48, LABEL_WIDTH:] == 255).all()
    assert (grid[:, :LABEL_WIDTH] < 128).any(), "the class numbers"


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    grid = pixels(picture_grid(image, np.zeros(1, int), columns=1))
    np.testing.assert_array_equal(tile(grid, 0, 0, 48), np.kron(image[0, 0], np.ones((3, 3), np.uint8)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB"), (9, "RGB")])
def test_any_number_of_channels_can_be_shown(channels: int, mode: str) -> None:
    assert Image.open(io.BytesIO(picture_grid(flat([5], channels), np.zeros(1, int)))).mode == mode


def test_large_images_are_shrunk_and_many_classes_thinned_out() -> None:
    targets = np.repeat(np.arange(60), 2)
    grid = pixels(picture_grid(flat(targets.tolist(), size=256), targets, columns=3, max_rows=4))
    assert grid.shape == (4 * 132 + GAP, LABEL_WIDTH + 2 * 132 + GAP)
    assert [tile(grid, row, 0, 128)[0, 0] for row in range(4)] == [0, 20, 39, 59]


def test_a_thousand_classes_of_one_image_each_fill_the_picture() -> None:
    grid = pixels(picture_grid(flat([number % 200 for number in range(1000)], size=256), np.arange(1000)))
    group = LABEL_WIDTH + 132
    assert grid.shape == (20 * 132 + GAP, 10 * group + GAP)
    shown = [grid[GAP + row * 132, LABEL_WIDTH + GAP + place * group] for row in range(20) for place in range(10)]
    assert shown == [int(number) % 200 for number in np.linspace(0, 999, 200).round()]


def test_a_grid_of_shards_runs_from_early_to_late(storage: Storage, tmp_path: Path) -> None:
    manifests = []
    for index in range(4):
        path, manifest = shard(tmp_path / "local", batch(9, height=16, width=16, seed=index), index=index)
        stage(storage, "staging", path, manifest)
        seal(storage, "staging", "jobs/a/shards", manifest)
        manifests.append(manifest)
    name = write_grid(storage, "jobs/a", manifests, tmp_path / "scratch", columns=4)
    assert name == "jobs/a/grid.png"
    grid = pixels(storage.read_bytes(name))
    for column in range(4):
        expected = batch(9, height=16, width=16, seed=column).images[0, 0]
        np.testing.assert_array_equal(tile(grid, 0, column, 48)[::3, ::3], expected)
    first = storage.read_bytes(name)
    write_grid(storage, "jobs/a", manifests, tmp_path / "scratch", columns=4)
    assert storage.read_bytes(name) == first
