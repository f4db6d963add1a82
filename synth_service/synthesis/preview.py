"""The newest images of a partition, kept as small tiles and stored now and then for people to look at.

Everything happens in the shard writer's thread, after a shard is sealed. The time between two stores is a hundred
times what the last one took, so previews cost at most 1% of a thread that is idle most of the time anyway. A
preview that cannot be stored is a pity and no error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from shared.shards.format import SampleBatch
from shared.shards.previews import Strip, Tile, encode_strip
from shared.shards.reader import CLASS_NUMBERS
from shared.storage import Storage, job_paths
from shared.tasks.labels import LabelFormat

logger = structlog.get_logger()

TILES = 256
TILES_OF_A_CLASS = 16
LARGEST_TILE = 64
WORK_PER_PREVIEW = 100.0
LONGEST_PAUSE_SECONDS = 60.0


class Preview:
    """The strip of one attempt at a partition.

    Args:
        storage: of the deployment.
        job, partition, attempt: whose images these are.
        num_classes: of the job.
        labels: by which the images are sorted, and which are shown beside them where they are pictures.
    """

    def __init__(
        self,
        storage: Storage,
        job: str,
        partition: int,
        attempt: int,
        *,
        num_classes: int,
        labels: LabelFormat = CLASS_NUMBERS,
    ) -> None:
        self._storage = storage
        self._job = job
        self._partition = partition
        self._attempt = attempt
        self._labels = labels
        self._of_a_class = min(TILES_OF_A_CLASS, max(1, TILES // num_classes))
        self._tiles: dict[int, deque[tuple[int, bytes]]] = {}
        """By class, the one that was added to last at the end: number of the image, pixels."""
        self._size = (0, 0, 0)
        self._images = 0
        self._stored_images = 0
        self._stored_name: str | None = None
        self._next_store = 0.0

    def add(self, batches: Sequence[SampleBatch]) -> None:
        """Takes in the images of a sealed shard, and stores the strip when that is due."""
        started = time.perf_counter()
        for batch in batches:
            rows = self._labels.rows(batch.targets)
            for place in _newest(rows, self._of_a_class):
                picture = self._labels.picture(batch.images[place], batch.targets[place])
                self._add(int(rows[place]), self._images + place, tile_of(picture))
            self._images += len(batch.targets)
        if time.monotonic() >= self._next_store:
            self._store()
            pause = WORK_PER_PREVIEW * (time.perf_counter() - started)
            self._next_store = time.monotonic() + min(pause, LONGEST_PAUSE_SECONDS)

    def flush(self) -> None:
        """Stores what has not been stored."""
        if self._images > self._stored_images:
            self._store()

    def _add(self, target: int, number: int, tile: NDArray[np.uint8]) -> None:
        self._size = tile.shape[0], tile.shape[1], tile.shape[2]
        tiles = self._tiles.pop(target, None) or deque(maxlen=self._of_a_class)
        tiles.append((number, tile.tobytes()))
        self._tiles[target] = tiles
        if len(self._tiles) > TILES:
            del self._tiles[next(iter(self._tiles))]

    def _store(self) -> None:
        tiles = [(number, Tile(target, pixels)) for target, kept in self._tiles.items() for number, pixels in kept]
        strip = Strip(*self._size, tuple(tile for _, tile in sorted(tiles, reverse=True)))
        name = job_paths.preview(self._job, self._partition, self._attempt, self._images)
        try:
            self._storage.put_bytes(encode_strip(strip), name)
            for stale in self._stale(name):
                self._storage.delete(stale)
        except Exception as error:  # whatever an object store raises; the next shard tries again
            logger.warning("preview_not_stored", error=f"{type(error).__name__}: {error}")
        else:
            self._stored_name, self._stored_images = name, self._images

    def _stale(self, name: str) -> list[str]:
        """What the strip of this name replaces: the one before, at first those of earlier attempts."""
        if self._stored_name is not None:
            return [self._stored_name]
        prefix = job_paths.preview_prefix(self._job, self._partition)
        present = [each for each in self._storage.list(job_paths.previews(self._job)) if each.startswith(prefix)]
        return [each for each in present if each != name and job_paths.parse_preview(each)[1] <= self._attempt]


def tile_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (C, H, W) as a small tile (h, w, 1 or 3): its first three channels, or its first in gray.

    Large images are shrunk by a whole factor, each pixel the mean of a square.
    """
    shown = image[:3] if image.shape[0] >= 3 else image[:1]
    channels, height, width = shown.shape
    factor = -(-max(height, width) // LARGEST_TILE)
    if factor > 1:
        high, wide = min(factor, height), min(factor, width)
        rows, columns = height // high, width // wide
        squares = shown[:, : rows * high, : columns * wide].reshape(channels, rows, high, columns, wide)
        shown = (squares.mean((2, 4)) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def _newest(targets: NDArray[np.integer], of_a_class: int) -> list[int]:
    """Places of the last images of each class, in order; at most ``TILES``."""
    taken: dict[int, int] = {}
    places = []
    for place in range(len(targets) - 1, -1, -1):
        target = int(targets[place])
        if taken.get(target, 0) < of_a_class:
            taken[target] = taken.get(target, 0) + 1
            places.append(place)
            if len(places) == TILES:
                break
    return places[::-1]
