"""Recovering a dataset as SRe2L and CDA do: pixels that the teacher recognizes in every crop of them.

SRe2L (Yin et al., NeurIPS 2023) optimizes pixels as DeepInversion does, but shows the teacher a random resized crop in
every step, so that no image rests on a single large object. CDA (Yin & Shen, TMLR 2024) makes that a curriculum: first
the whole image, then smaller and smaller crops. Crops are drawn per image, which the authors do per batch. What is kept
is the last step's image: a lower loss before it says that a crop was easy, not that the image was better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shared import seeds
from shared.networks.image_operations import LARGEST_ASPECT_CHANGE, resized_crops
from shared.specs import RecoverSynthesis
from synth_service.inversion.deepinversion import PixelInverter, View


class RecoverInverter(PixelInverter[RecoverSynthesis]):
    """Optimizes pixels under random resized crops."""

    def augment(self, images: Tensor, view: View, random: torch.Generator) -> Tensor:
        """A crop of each image at full size, half of them mirrored, all shifted alike around the edges."""
        if self.spec.crop_scale < 1:
            smallest = smallest_crop(view.done, self.spec)
            images = resized_crops(images, self.draw_crops(len(images), images.shape[2:], smallest, random))
        if self.spec.horizontal_flip:
            images = torch.where(self.draw_mirrored(len(images), random), images.flip(3), images)
        return torch.roll(images, view.shift, dims=(2, 3))

    def may_keep(self, step: int, steps: int) -> bool:
        """Only the last one's."""
        return step == steps - 1

    def draw_shifts(self, steps: int, reach: int) -> list[tuple[int, int]]:
        """(down, right) of every step, from 0 to ``reach``: around the edges no direction is special."""
        cpu = seeds.generator(self.setup.seed, f"{steps} shifts by {reach} of round {self.rounds}")
        return [(down, right) for down, right in torch.randint(0, reach + 1, (steps, 2), generator=cpu).tolist()]

    def draw_crops(self, count: int, size: torch.Size, smallest: float, random: torch.Generator) -> Tensor:
        """(count, 4) int64: top, left, height and width of every image's crop.

        The share of the area is uniform in [smallest, 1] and the aspect log-uniform, as far as the crop then still
        fits; so no draw is rejected.
        """
        draws = torch.rand(4, count, generator=random, device=self.device, dtype=torch.float64)
        area = smallest + (1 - smallest) * draws[0]
        bound = (-area.log()).clamp(max=math.log(LARGEST_ASPECT_CHANGE))
        aspect = ((2 * draws[1] - 1) * bound).exp()
        sides = []
        for place, length, share in zip(draws[2:], size, ((area / aspect).sqrt(), (area * aspect).sqrt()), strict=True):
            cropped = (length * share).round().clamp(1, length)
            sides.append((((length - cropped + 1) * place).floor(), cropped))
        (top, height), (left, width) = sides
        return torch.stack([top, left, height, width], dim=1).long()


def smallest_crop(done: float, spec: RecoverSynthesis) -> float:
    """The least share of the area that a crop has.

    Args:
        done: share of the steps that are done, in [0, 1).
        spec: gives the final share, the curriculum and the share of the steps that it takes.
    """
    if spec.curriculum == "none" or done >= spec.curriculum_share:
        return spec.crop_scale
    place = done / spec.curriculum_share
    remaining = (1 + math.cos(math.pi * place)) / 2 if spec.curriculum == "cosine" else 1 - place
    return spec.crop_scale + (1 - spec.crop_scale) * remaining
