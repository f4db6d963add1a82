"""Where a pool's images lie: in memory up to a limit, and beyond it in a file on a local disk.

Images lie as raw bytes on the disk, too. They are decoded once, when their shard arrives, and not in every epoch:
to draw one again is a single read, which eight threads do ahead of the step that needs it. The file has no name, so
it goes with the process however that ends, and it is read with ``preadv`` rather than mapped: mapped pages would count
as memory of the process, while the kernel's own cache of the file gives way to whoever needs the room.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from shared.errors import UserError

FIRST_CHUNK_BYTES = 4 * 2**20
READERS = 8
"""Threads that read from the disk. They wait and do not compute; a network disk wants several requests at a time."""


class ImageStore:
    """Numbered places for uint8 images of one shape. Written and read by one thread; close it after use.

    Memory comes in chunks, each as large as all before it together: none is ever copied or moved, a batch is
    collected from few of them, and at most half of what is allocated is unused.

    Args:
        shape: (channels, height, width) of every image.
        slots: places in all.
        memory_bytes: most that lies in memory; None for no limit.
        folder: for the file with what memory does not hold; None for the system's temporary folder.
        disk_bytes: most that this file may hold.
        pinned: whether what is read goes to a GPU: pinned memory is copied there without holding up the host.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        slots: int,
        *,
        memory_bytes: int | None = None,
        folder: Path | None = None,
        disk_bytes: int = 0,
        pinned: bool = False,
    ) -> None:
        self.shape = shape
        self._image_bytes = math.prod(shape)
        self._memory_slots = slots if memory_bytes is None else min(slots, memory_bytes // self._image_bytes)
        self._disk_slots = disk_bytes // self._image_bytes
        self._folder = folder or Path(tempfile.gettempdir())
        self._pinned = pinned
        self._chunks: list[Tensor] = []
        self._starts: list[int] = []  # the slot with which each chunk begins
        self._file: BinaryIO | None = None
        self._readers: ThreadPoolExecutor | None = None

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(chunk.nbytes for chunk in self._chunks)

    @property
    def uses_disk(self) -> bool:
        """Whether some images lie on disk."""
        return self._file is not None

    def require_room(self, images: int) -> None:
        """Refuse a number of images that the limits or the free disk space will never hold.

        Raises:
            UserError: ``pool_does_not_fit``.
        """
        if images <= self._memory_slots:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free // self._image_bytes
        if images > self._memory_slots + min(self._disk_slots, free):
            raise self._does_not_fit(images, free)

    def write(self, slot: int, images: Tensor) -> None:
        """Put images (N, C, H, W) uint8 into the slots from ``slot`` on, in place of what was there; copies.

        Raises:
            UserError: ``pool_does_not_fit``.
            OSError: the disk is full; nothing is lost, and the same call may be made again.
        """
        while len(images) > 0:
            if slot < self._memory_slots:
                chunk, offset = self._chunk_of(slot)
                part = images[: len(chunk) - offset]
                chunk[offset : offset + len(part)].copy_(part)
            else:
                part = images
                self._write_to_disk(slot - self._memory_slots, part)
            images, slot = images[len(part) :], slot + len(part)

    def begin_read(self, slots: Tensor) -> PendingRead:
        """Start to collect the images of the slots, in their order; each slot must have been written."""
        batch = torch.empty((len(slots), *self.shape), dtype=torch.uint8, pin_memory=self._pinned)
        if self._file is None:
            return PendingRead(self, batch, slots, torch.arange(len(slots)), [])
        lies_on_disk = slots >= self._memory_slots
        in_memory, on_disk = (~lies_on_disk).nonzero().squeeze(1), lies_on_disk.nonzero().squeeze(1)
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS, "pool-reader")
        reads = [self._readers.submit(self._read_rows, batch, part, slots[part]) for part in on_disk.chunk(READERS)]
        return PendingRead(self, batch, slots, in_memory, reads)

    def close(self) -> None:
        """Gives the file up."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
            self._readers = None
        if self._file is not None:
            self._file.close()
            self._file = None

    # -- memory ---------------------------------------------------------------------------------------

    def _chunk_of(self, slot: int) -> tuple[Tensor, int]:
        """The chunk with a slot, allocated if need be, and the slot's offset in it."""
        while (allocated := sum(map(len, self._chunks))) <= slot:
            length = max(allocated, FIRST_CHUNK_BYTES // self._image_bytes, 1)
            length = min(length, self._memory_slots - allocated)
            self._starts.append(allocated)
            self._chunks.append(torch.empty((length, *self.shape), dtype=torch.uint8, pin_memory=self._pinned))
        number = max(i for i, start in enumerate(self._starts) if start <= slot)
        return self._chunks[number], slot - self._starts[number]

    def collect(self, batch: Tensor, places: Tensor, slots: Tensor) -> None:
        """Copy images from memory into some places of a batch; ``slots`` are those of the whole batch."""
        if len(self._chunks) == 1 and len(places) == len(batch):
            torch.index_select(self._chunks[0], 0, slots, out=batch)
            return
        chunk_numbers = torch.bucketize(slots[places], torch.tensor(self._starts), right=True) - 1
        for number, (chunk, start) in enumerate(zip(self._chunks, self._starts, strict=True)):
            here = places[chunk_numbers == number]
            batch.index_copy_(0, here, chunk.index_select(0, slots[here] - start))

    # -- disk -----------------------------------------------------------------------------------------

    def _write_to_disk(self, position: int, images: Tensor) -> None:
        if position + len(images) > self._disk_slots:
            free = shutil.disk_usage(self._folder).free // self._image_bytes
            raise self._does_not_fit(self._memory_slots + position + len(images), free)
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - open until close()
        view = images.contiguous().numpy().data.cast("B")
        offset = position * self._image_bytes
        while len(view) > 0:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def _read_rows(self, batch: Tensor, places: Tensor, slots: Tensor) -> None:
        assert self._file is not None
        rows = batch.numpy()
        for place, slot in zip(places.tolist(), slots.tolist(), strict=True):
            row, offset = rows[place].data.cast("B"), (slot - self._memory_slots) * self._image_bytes
            while len(row) > 0:
                count = os.preadv(self._file.fileno(), [row], offset)
                if count == 0:
                    raise EOFError(f"the pool's file ends before image {slot}")
                row, offset = row[count:], offset + count

    def _does_not_fit(self, images: int, free: int) -> UserError:
        """The refusal; ``free`` is the room for images on the disk."""
        memory = self._memory_slots
        fits = memory + min(self._disk_slots, free)
        size = "×".join(map(str, self.shape))
        return UserError(
            "pool_does_not_fit",
            f"distillation.pool_capacity: a pool of {images:,} images of {size} takes "
            f"{images * self._image_bytes / 1e9:.1f} GB; this distiller holds {fits:,} ({memory:,} in memory by "
            f"DFKD_POOL_MEMORY_BYTES, {self._disk_slots:,} on disk by DFKD_POOL_DISK_BYTES, where there is room for "
            f"{free:,}): set distillation.pool_capacity to at most {fits:,}, or give the distiller more room",
        )


class PendingRead:
    """A batch that is being read."""

    def __init__(
        self, store: ImageStore, batch: Tensor, slots: Tensor, in_memory: Tensor, reads: Sequence[Future[None]]
    ) -> None:
        self.slots = slots
        self._store = store
        self._batch = batch
        self._in_memory = in_memory
        self._reads = reads

    def result(self) -> Tensor:
        """The images, uint8 (N, C, H, W) in host memory, once all are there."""
        if len(self._in_memory) > 0:
            self._store.collect(self._batch, self._in_memory, self.slots)
        for read in self._reads:
            read.result()
        return self._batch

    def abandon(self) -> None:
        """Returns when nothing is being read any more: before what it reads is overwritten."""
        for read in self._reads:
            if not read.cancel():
                read.exception()
