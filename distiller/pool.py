"""The synthetic images a student is trained on, 8 bits each, in host memory.

Image number k of a job, counted in the order of arrival, lives in slot k mod capacity: when the pool is
full the oldest give way. Nothing else decides what is where, so a successor that adds the same shards in
the same order holds the same pool, and the state to save is a few numbers and no images.

Batches are drawn in epochs: every image once, in random order, before any again. That has less variance
than independent draws. An epoch ends early when images arrive, so that new ones are drawn at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FIRST_CHUNK_BYTES = 4 * 2**20


class ImagePool:
    """A ring of uint8 images that grows with what it holds. Not for use by several threads at once.

    Memory comes in chunks, each as large as all before it together: none is ever copied or moved, a batch is
    collected from few of them, and at most half of what is allocated is unused.

    Args:
        capacity: images kept at most.
        shape: (channels, height, width) of every image.
        device: where batches go. For CUDA the pool is pinned, so that the copy does not hold up the host.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], device: torch.device) -> None:
        if capacity < 1:
            raise ValueError(f"distillation.pool_capacity is {capacity}; the pool must hold at least one image")
        self.capacity = capacity
        self.shape = shape
        self.device = device
        self.images_seen = 0
        """Images ever added, also those that gave way since."""
        self._chunks: list[Tensor] = []
        self._starts: list[int] = []  # the slot with which each chunk begins
        self._order = torch.empty(0, dtype=torch.int64)  # slots in the order of this epoch
        self._drawn = 0  # of this epoch
        self._images_seen_at_shuffle = 0
        self._generator_state_at_shuffle = torch.empty(0, dtype=torch.uint8)

    def __len__(self) -> int:
        """Images to draw from."""
        return min(self.images_seen, self.capacity)

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def add(self, images: Tensor) -> None:
        """Append images, in the place of the oldest once the pool is full.

        Args:
            images: uint8 (N, C, H, W) in host memory; copied.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(
                f"the pool holds uint8 images of {self.shape}, not {images.dtype} of {tuple(images.shape[1:])}"
            )
        kept = images[-self.capacity :]
        number = self.images_seen + len(images) - len(kept)
        while len(kept) > 0:
            slot = number % self.capacity
            chunk, offset = self._chunk_of(slot)
            part = kept[: len(chunk) - offset]
            chunk[offset : offset + len(part)].copy_(part)
            kept = kept[len(part) :]
            number += len(part)
        self.images_seen += len(images)

    def sample(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """The next images of the epoch, uint8 (batch_size, C, H, W) on the pool's device.

        A batch that reaches the end of an epoch goes on with the next one, so it is always full and only
        then can hold an image twice. The draws follow from the generator and the calls of ``add``.

        Args:
            batch_size: also more than the pool holds.
            generator: on the CPU; used once per epoch.

        Raises:
            ValueError: the pool is empty.
        """
        if len(self) == 0:
            raise ValueError("nothing can be drawn from an empty pool")
        parts = []
        missing = batch_size
        while missing > 0:
            if self._drawn == len(self._order) or self._images_seen_at_shuffle != self.images_seen:
                self._shuffle(generator)
            part = self._order[self._drawn : self._drawn + missing]
            self._drawn += len(part)
            missing -= len(part)
            parts.append(part)
        return self._collect(torch.cat(parts)).to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands. The generator's own state and the images are the caller's to keep."""
        return {
            "images_seen": self.images_seen,
            "drawn": self._drawn,
            "images_seen_at_shuffle": self._images_seen_at_shuffle,
            "generator_state_at_shuffle": self._generator_state_at_shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the epoch that ``state_dict`` saw. First add the same images in the same order again.

        Where the pool cannot be refilled as it was (a shard was lost meanwhile), the next draw begins a new
        epoch over what there is; compare ``images_seen`` to know.
        """
        self._order, self._drawn, self._images_seen_at_shuffle = self._order[:0], 0, 0
        # An epoch that the saved pool had already outgrown would not have been continued either.
        if state["images_seen"] == state["images_seen_at_shuffle"] == self.images_seen > 0:
            generator = torch.Generator()
            generator.set_state(state["generator_state_at_shuffle"])
            self._shuffle(generator)
            self._drawn = state["drawn"]

    def _shuffle(self, generator: torch.Generator) -> None:
        self._generator_state_at_shuffle = generator.get_state()
        self._images_seen_at_shuffle = self.images_seen
        self._order = torch.randperm(len(self), generator=generator)
        self._drawn = 0

    def _chunk_of(self, slot: int) -> tuple[Tensor, int]:
        """The chunk with a slot, allocated if need be, and the slot's offset in it."""
        while (allocated := sum(map(len, self._chunks))) <= slot:
            length = max(allocated, FIRST_CHUNK_BYTES // math.prod(self.shape), 1)
            self._starts.append(allocated)
            self._chunks.append(self._empty(min(length, self.capacity - allocated)))
        number = max(i for i, start in enumerate(self._starts) if start <= slot)
        return self._chunks[number], slot - self._starts[number]

    def _collect(self, slots: Tensor) -> Tensor:
        """The images of the slots, in their order: uint8 (N, C, H, W) in host memory."""
        batch = self._empty(len(slots))
        if len(self._chunks) == 1:
            return torch.index_select(self._chunks[0], 0, slots, out=batch)
        chunk_numbers = torch.bucketize(slots, torch.tensor(self._starts), right=True) - 1
        for number, (chunk, start) in enumerate(zip(self._chunks, self._starts, strict=True)):
            places = (chunk_numbers == number).nonzero().squeeze(1)
            batch.index_copy_(0, places, chunk.index_select(0, slots[places] - start))
        return batch

    def _empty(self, count: int) -> Tensor:
        return torch.empty((count, *self.shape), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
