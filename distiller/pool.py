"""The synthetic images a student is trained on, 8 bits each, in host memory and, beyond a limit, on disk.

Image number k of a job, counted in the order of arrival, lives in slot k mod capacity: when the pool is
full the oldest give way. Nothing else decides what is where, so a successor that adds the same shards in
the same order holds the same pool, and the state to save is a few numbers and no images.

Batches are drawn in epochs: every image once, in random order, before any again. That has less variance
than independent draws. An epoch ends early when images arrive, so that new ones are drawn at once.

Within an epoch the next batch is known beforehand. Where part of the pool lies on disk it is read while the caller
still computes with the last one; what is drawn does not depend on that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distiller.image_store import ImageStore, PendingRead


class ImagePool:
    """A ring of uint8 images that grows with what it holds. Not for use by several threads at once; close it after use.

    Args:
        capacity: images kept at most.
        shape: (channels, height, width) of every image.
        device: where batches go.
        memory_bytes: most that lies in memory; None for no limit.
        folder: for what does not; None for the system's temporary folder.
        disk_bytes: most that may lie there.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        memory_bytes: int | None = None,
        folder: Path | None = None,
        disk_bytes: int = 0,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"distillation.pool_capacity is {capacity}; the pool must hold at least one image")
        self.capacity = capacity
        self.shape = shape
        self.device = device
        self.images_seen = 0
        """Images ever added, also those that gave way since."""
        self._store = ImageStore(
            shape,
            capacity,
            memory_bytes=memory_bytes,
            folder=folder,
            disk_bytes=disk_bytes,
            pinned=device.type == "cuda",
        )
        self._ahead: PendingRead | None = None  # the next batch, as far as it lies on disk
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
        return self._store.nbytes

    def require_room(self, images: int) -> None:
        """Refuse a job of so many images whose pool this distiller will never hold.

        Raises:
            UserError: ``pool_does_not_fit``.
        """
        self._store.require_room(min(images, self.capacity))

    def add(self, images: Tensor) -> None:
        """Append images, in the place of the oldest once the pool is full.

        Args:
            images: uint8 (N, C, H, W) in host memory; copied.

        Raises:
            UserError: ``pool_does_not_fit``.
            OSError: the disk is full; the same call may be made again.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(
                f"the pool holds uint8 images of {self.shape}, not {images.dtype} of {tuple(images.shape[1:])}"
            )
        self._forget_ahead()
        kept = images[-self.capacity :]
        number = self.images_seen + len(images) - len(kept)
        while len(kept) > 0:
            slot = number % self.capacity
            part = kept[: self.capacity - slot]
            self._store.write(slot, part)
            kept = kept[len(part) :]
            number += len(part)
        self.images_seen += len(images)

    def skip(self, count: int) -> None:
        """Counts images that have given way before a successor could see them, without having them.

        Args:
            count: of them. At least ``capacity`` images are to be added before the next draw, which fill every slot.
        """
        self._forget_ahead()
        self.images_seen += count

    def sample(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """The next images of the epoch, uint8 (batch_size, C, H, W) on the pool's device.

        A batch that reaches the end of an epoch goes on with the next one, so it is always full and only
        then can hold an image twice. The draws follow from the generator and the calls of ``add``.

        Args:
            batch_size: also more than the pool holds, or none.
            generator: on the CPU; used once per epoch.

        Raises:
            ValueError: the pool is empty.
        """
        if len(self) == 0:
            raise ValueError("nothing can be drawn from an empty pool")
        parts = [self._order[:0]]
        missing = batch_size
        while missing > 0:
            if self._drawn == len(self._order) or self._images_seen_at_shuffle != self.images_seen:
                self._shuffle(generator)
            part = self._order[self._drawn : self._drawn + missing]
            self._drawn += len(part)
            missing -= len(part)
            parts.append(part)
        images = self._read(torch.cat(parts))
        self._read_ahead(batch_size)
        return images.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Gives up what lies on disk."""
        self._forget_ahead()
        self._store.close()

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

    def _read(self, slots: Tensor) -> Tensor:
        """The images of the slots, in their order: uint8 (N, C, H, W) in host memory."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and torch.equal(ahead.slots, slots):
            return ahead.result()
        if ahead is not None:
            ahead.abandon()
        return self._store.begin_read(slots).result()

    def _read_ahead(self, batch_size: int) -> None:
        """Begin with the batch that comes next if nothing arrives, unless it needs the next epoch's order."""
        following = self._order[self._drawn : self._drawn + batch_size]
        if self._store.uses_disk and len(following) == batch_size:
            self._ahead = self._store.begin_read(following)

    def _forget_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.abandon()
            self._ahead = None
