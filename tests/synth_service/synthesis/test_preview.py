import numpy as np
import pytest

from shared.shards.format import SampleBatch
from shared.shards.previews import decode_strip
from shared.storage import Storage, job_paths
from synth_service.synthesis.preview import TILES, Preview, tile_of

JOB = "job-1"


def batch(targets: list[int], *, shade: int = 0, size: int = 8) -> SampleBatch:
    """Images of one shade, so that a test can tell batches apart."""
    images = np.full((len(targets), 3, size, size), shade, np.uint8)
    count = len(targets)
    return SampleBatch(
        images=images,
        targets=np.array(targets),
        described={"teacher_confidence": np.ones(count, np.float32)},
        round=1,
        student_version=0,
    )


def stored(storage: Storage) -> list[str]:
    return storage.list(job_paths.previews(JOB))


def test_the_first_shard_is_shown_at_once_and_the_last_at_the_end(storage: Storage) -> None:
    preview = Preview(storage, JOB, 0, 1, num_classes=10)
    preview.add([batch([0, 1], shade=10)])
    assert stored(storage) == [job_paths.preview(JOB, 0, 1, 2)]
    preview.add([batch([1], shade=20)])
    assert stored(storage) == [job_paths.preview(JOB, 0, 1, 2)]  # a hundredth of the time is not over
    preview.flush()
    (name,) = stored(storage)
    assert name == job_paths.preview(JOB, 0, 1, 3)
    strip = decode_strip(storage.read_bytes(name))
    assert [(tile.target, tile.pixels[0]) for tile in strip.tiles] == [(1, 20), (1, 10), (0, 10)]


def test_nothing_is_stored_twice(storage: Storage) -> None:
    preview = Preview(storage, JOB, 0, 1, num_classes=10)
    preview.flush()
    assert stored(storage) == []
    preview.add([batch([0])])
    storage.delete_tree(job_paths.previews(JOB))
    preview.flush()
    assert stored(storage) == []


def test_an_attempt_replaces_what_earlier_ones_left_and_nothing_of_others(storage: Storage) -> None:
    for partition, attempt in ((0, 1), (0, 3), (1, 1)):
        Preview(storage, JOB, partition, attempt, num_classes=10).add([batch([0])])
    Preview(storage, JOB, 0, 2, num_classes=10).add([batch([0, 0])])  # paused, and wakes up late
    assert stored(storage) == [
        job_paths.preview(JOB, 0, 2, 2),
        job_paths.preview(JOB, 0, 3, 1),
        job_paths.preview(JOB, 1, 1, 1),
    ]


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_a_strip_is_small_and_has_the_newest_of_each_class(storage: Storage, num_classes: int) -> None:
    preview = Preview(storage, JOB, 0, 1, num_classes=num_classes)
    for shade in range(4):
        preview.add([batch([place % num_classes for place in range(2000)], shade=shade)])
    preview.flush()
    strip = decode_strip(storage.read_bytes(stored(storage)[0]))
    assert len(strip.tiles) <= TILES
    assert {tile.pixels[0] for tile in strip.tiles} == {3}
    assert len({tile.target for tile in strip.tiles}) == min(num_classes, TILES)


def test_a_storage_that_fails_costs_the_preview_and_not_the_shard(storage: Storage) -> None:
    storage.put_bytes(b"in the way", job_paths.previews(JOB))
    preview = Preview(storage, JOB, 0, 1, num_classes=10)
    preview.add([batch([0])])
    storage.delete(job_paths.previews(JOB))
    preview.flush()
    assert len(stored(storage)) == 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 32, 32), (32, 32, 3)),
        ((1, 8, 8), (8, 8, 1)),
        ((2, 8, 8), (8, 8, 1)),
        ((3, 224, 224), (56, 56, 3)),
        ((4, 4, 2048), (1, 64, 3)),
    ],
)
def test_tiles_are_small_and_gray_or_in_color(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tile = tile_of(image)
    assert tile.shape == expected
    assert abs(float(tile[..., 0].mean()) - float(image[0].mean())) < 1
