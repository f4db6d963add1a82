"""Where the distiller's images come from: the shards of a running job, or a dataset that is already there.

Both hand out batches of 8-bit images in a fixed order and remember how far they are, so that a successor
refills its pool with the same images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distiller.shard_cache import ShardCache
from shared.broker import AnnouncedShard
from shared.errors import UserError
from shared.shards.format import DamagedShard, read_shard
from shared.shards.patterns import expand_shards
from shared.shards.reader import iter_samples
from shared.storage import PathOutsideStorage, job_paths
from shared.worker.quarantine import quarantine, read_twice
from shared.worker.turn import Turn, TurnYielded

START = "0"
READ_BYTES = 32 * 2**20
"""Of a dataset's images at a time: beside a pool on disk this is memory that counts."""

READ_AHEAD = 8
"""Shards asked for at once."""


class JobShards:
    """The shards of this job, verified one by one as they are announced.

    A damaged shard is taken out of the job and its images are made again; too many of them fail the job.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._cache = cache_of(turn)
        self._job_id = turn.attempt.job_id
        self.position = START
        self.shards = 0
        """Shards taken that count: what the announcer counts against."""
        self.is_complete = False
        """Whether every image of the job has been handed out."""
        self._to_refill: list[AnnouncedShard] = []

    def begin_refill(self, state: dict[str, Any], capacity: int) -> int:
        """Goes to a saved position. A large job that is preempted every hour must not read all of its shards each time.

        Args:
            state: as ``state`` gave it.
            capacity: images that the pool keeps; those before them are passed over.

        Returns:
            How many images are passed over.
        """
        self.position = state["position"]
        shards = list(self._turn.broker.shards.until(self._job_id, self.position))
        kept, first = 0, len(shards)
        while first > 0 and kept < capacity:
            first -= 1
            kept += shards[first].manifest.images
        self._to_refill, self.shards = shards[first:], first
        return sum(shard.manifest.images for shard in shards[:first])

    def refill(self) -> Iterator[NDArray[Any]]:
        """Images of the shards that ``begin_refill`` did not pass over, oldest first.

        Raises:
            TurnYielded: one of them is damaged, so that others would be needed in its place. It is quarantined by now:
                the next attempt reads what there is.
        """
        has_passed_over = self.shards > 0
        for shard in self._to_refill:
            self._turn.check()
            images = self._read(shard, consumed=True)
            if images is not None:
                # Counted anew: a shard may have been quarantined since the position was saved.
                self.shards += 1
                yield images
            elif has_passed_over:
                raise TurnYielded("a shard that the pool needs is damaged")

    def take(self, *, block_seconds: float) -> Iterator[NDArray[Any]]:
        """Images of new shards, each shard (N, C, H, W) uint8; empty when none came in that time."""
        had_ended = self._turn.broker.jobs.synthesis_is_complete(self._job_id)
        announced = self._turn.broker.shards.read(
            self._job_id, self.position, count=READ_AHEAD, block_seconds=0.0 if had_ended else block_seconds
        )
        # Asked before reading: whatever was announced by the end of synthesis was then in what was read.
        self.is_complete = had_ended and not announced
        for shard in announced:
            self._turn.check()
            images = self._read(shard, consumed=False)
            self.position = shard.position
            if images is not None:
                self.shards += 1
                yield images

    def reopen(self) -> None:
        """Shards that were taken have been quarantined since, and others will come in their place."""
        self.is_complete = False
        self.shards = self._turn.broker.jobs.shards_consumed(self._job_id)

    def counts(self) -> dict[str, int]:
        """Nothing for the result: synthesis says how many images the job has."""
        return {}

    def state(self) -> dict[str, Any]:
        """Position to continue from."""
        return {"position": self.position}

    def _read(self, shard: AnnouncedShard, *, consumed: bool) -> NDArray[Any] | None:
        """A verified shard's images, or None when it had to be quarantined."""
        manifest = shard.manifest
        name = f"{job_paths.shards(manifest.job)}/{manifest.name}"

        def read() -> NDArray[Any]:
            with self._cache.fetched(name, sha256=manifest.sha256, size=manifest.bytes) as path:
                return read_shard(path, manifest, labels=None).images

        try:
            return read_twice(self._turn, shard, read)
        except DamagedShard as damage:
            quarantine(self._turn, shard, damage, consumed=consumed)
            return None


class ExistingDataset:
    """A WebDataset under the storage root that this job distils from."""

    def __init__(self, turn: Turn, pattern: str, field: str = "shards") -> None:
        self._turn = turn
        self._pattern = pattern
        self._field = field
        self.shards = self.images = 0
        self.is_complete = False

    def reopen(self) -> None:
        """Never needed: nobody but the client is in charge of these files."""
        raise AssertionError("a job that only distils owes no shards")

    def begin_refill(self, _state: dict[str, Any], _capacity: int) -> int:
        """Passes nothing over."""
        return 0

    def refill(self) -> Iterator[NDArray[Any]]:
        """The whole dataset: it is all there at any time."""
        yield from self.take(block_seconds=0)

    def take(self, *, block_seconds: float) -> Iterator[NDArray[Any]]:
        """All images in batches, the first time; nothing afterwards."""
        if self.is_complete:
            return
        shape = self._turn.spec.teacher.input.shape
        self.shards = self.images = 0
        # The teacher labels every image; what the dataset says of it is nobody's business here.
        batch_size = max(1, min(1024, READ_BYTES // math.prod(shape)))
        for samples in iter_samples(
            self._counted(), shape, batch_size=batch_size, read_labels=False, check=self._turn.check
        ):
            self.images += len(samples.images)
            yield samples.images
        self.is_complete = True

    def _counted(self) -> Iterator[Path]:
        for path in dataset_paths(self._turn, self._pattern, self._field):
            yield path
            self.shards += 1

    def counts(self) -> dict[str, int]:
        """How much was read, for the result: whoever made the dataset knows how much that should be."""
        return {"dataset_images": self.images, "dataset_shards": self.shards}

    def state(self) -> dict[str, Any]:
        """Nothing: a dataset has no position."""
        return {}


def dataset_paths(turn: Turn, pattern: str, field: str) -> Iterator[Path]:
    """Local paths of the tars that a pattern names, fetched one at a time and valid until the next.

    Raises:
        UserError: ``dataset_not_found`` or ``path_outside_storage``, naming the field.
    """
    cache = cache_of(turn)
    for name in expand_shards(pattern):
        turn.check()
        with ExitStack() as stack:
            try:
                path = stack.enter_context(cache.fetched(name))
            except FileNotFoundError:
                message = f"{field}: there is no file `{name}` under the storage root"
                raise UserError("dataset_not_found", message) from None
            except PathOutsideStorage as error:
                raise UserError("path_outside_storage", f"{field}: {error}") from error
            yield path


def cache_of(turn: Turn) -> ShardCache:
    """The cache of this machine, as the deployment has set it up."""
    settings = turn.settings
    return ShardCache(turn.storage, turn.scratch, folder=settings.cache_folder, max_bytes=settings.cache_bytes)
