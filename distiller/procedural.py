"""Procedural images among those that a student is trained on: drawn by formula, answered by the teacher.

A student that only ever sees inverted images learns what its teacher says of these. They lack plain areas, sharp edges,
and many a contrast and brightness. Images drawn by formula have them, but most are nothing that the teacher was made
for, and a student has little time. So several times as many are drawn, and those are kept whose BatchNorm statistics,
each image by itself, are the most like those of the training data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from distiller.dead_leaves import draw
from shared import seeds
from shared.networks.batch_norm import layers_with_statistics, smallest_spread
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.modes import evaluating
from shared.specs import InputSpec

TRIES: Final = 4
"""Images that are drawn for each that is kept."""

MOST_IMAGES: Final = 2048
MOST_BYTES: Final = 64 * 2**20
FEWEST_IMAGES: Final = 16
CHUNK_IMAGES, CHUNK_VALUES = 256, 2**22
"""Most that are drawn and looked at together."""

FAR: Final = 50.0
"""Nats. A channel further from the training data than this is as bad as one that is so far."""


class ProceduralImages:
    """A fixed set of such images, chosen when first asked for: the same for the same teacher, shape and seed.

    Args:
        input: shape and normalization.
        seed: of the job.
        teacher: on the device, with its BatchNorm layers. A copy that has them folded shows no statistics.
        device: where batches are needed. The set itself stays in host memory.
        most: that will ever be asked for, so that a short job does not choose among thousands.
    """

    def __init__(self, input: InputSpec, seed: int, teacher: nn.Module, device: torch.device, most: int) -> None:
        self._input, self._seed, self._device = input, seed, device
        self._teacher: nn.Module | None = teacher
        room = min(MOST_IMAGES, MOST_BYTES // math.prod(input.shape))
        self._count = max(FEWEST_IMAGES, min(room, most))
        self._images: Tensor | None = None

    def prepare(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """Draws and chooses, if that was not done yet: seconds, or minutes for large images.

        Args:
            check: called every second or so; what it raises ends it.

        Returns:
            uint8 (N, C, H, W) in host memory.
        """
        if self._images is None:
            assert self._teacher is not None
            generator = seeds.generator(self._seed, seeds.PROCEDURAL)
            size = max(1, min(CHUNK_IMAGES, CHUNK_VALUES // math.prod(self._input.shape)))
            normalize = Normalization(self._input).to(self._device)
            dtype = next((each.dtype for each in self._teacher.parameters()), torch.float32)
            drawn, distances = [], []
            for at in range(0, self._count * TRIES, size):
                check()
                images = draw(min(size, self._count * TRIES - at), self._input.shape, generator)
                drawn.append(images)
                inputs = normalize(to_pixels(images.to(self._device))).to(dtype)
                distances.append(distance_by_image(self._teacher, inputs).cpu())
            nearest = torch.cat(distances).argsort(stable=True)[: self._count].sort().values
            self._images = torch.cat(drawn)[nearest]
            self._teacher = None
        return self._images

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Some of them, each picked by itself: uint8 (count, C, H, W) on the device.

        Args:
            count: how many.
            generator: on the CPU.
        """
        images = self.prepare()
        picked = torch.randint(len(images), (count,), generator=generator)
        batch = torch.empty((count, *images.shape[1:]), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        torch.index_select(images, 0, picked, out=batch)
        return batch.to(self._device, non_blocking=True)


@torch.no_grad()
def distance_by_image(network: nn.Module, images: Tensor) -> Tensor:
    """How unlike the training data of a network images are, each by itself: (N,) nats, from 0.

    For every BatchNorm layer the divergence KL(image ‖ training) of the normal distributions that a channel's mean and
    variance stand for, mean over channels, then over layers. Layers whose input has no height and width tell nothing of
    one image and do not count.

    Args:
        network: with at least one layer of ``layers_with_statistics``.
        images: normalized, (N, C, H, W), on its device.
    """
    found: list[Tensor] = []

    def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0]
        if values.ndim < 3 or values[0, 0].numel() < 2:
            return
        values = values.flatten(2).to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(values, 2, correction=0)
        floor = smallest_spread(layer)
        spread = layer.running_var + floor
        ratio = (variance + floor) / spread
        divergence = (ratio - 1 - ratio.log() + (mean - layer.running_mean).square() / spread) / 2
        found.append(divergence.clamp_max(FAR).mean(1))

    handles = [layer.register_forward_pre_hook(look) for layer in layers_with_statistics(network)]
    try:
        with evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found).mean(0) if found else images.new_zeros(len(images))
