"""Dead leaves: shapes that hide one another, flat or textured, on plain or textured grounds, drawn by formula.

They have the edges, the plain areas and the scale-free statistics of natural images, and need no data at all; networks
learn useful features from them alone (Baradad et al., NeurIPS 2021, "Learning to See by Looking at Noise").
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from shared.networks.random_fields import random_fields

MOST_SHAPES_POWER: Final = 5
"""Shapes of an image: two to a power drawn evenly from zero to this."""

SMALLEST, LARGEST = 0.05, 0.6
"""Radius of a shape as a share of the longer side; drawn so that all scales are as likely."""

EXPONENTS: Final = (0.7, 1.0, 2.0, 2.0, 10.0)
"""Of superellipses: stars, diamonds, ellipses (twice as often) and rectangles."""

HOLLOW_SHARE, PLAIN_GROUND_SHARE, TEXTURE_ONLY_SHARE = 0.25, 0.25, 0.2
BLACK_SHARE: Final = 0.7
"""Of the plain grounds; the others are white."""

MOST_TEXTURE: Final = 0.35


def draw(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """New images: uint8 (count, C, H, W).

    Args:
        count: how many; each costs about ten floats a value while it is drawn.
        shape: (C, H, W).
        generator: on the CPU.
    """
    palette = _Palette(shape, generator)
    texture = palette.textures(count) * (palette.uniform(count) ** 3 * MOST_TEXTURE)
    is_texture = palette.uniform(count) < TEXTURE_ONLY_SHARE
    texture = torch.where(is_texture, palette.textures(count) * palette.uniform(count, high=MOST_TEXTURE), texture)
    is_plain = (palette.uniform(count) < PLAIN_GROUND_SHARE) & ~is_texture
    plain = (palette.uniform(count) > BLACK_SHARE).float()
    images = torch.where(is_plain, plain, palette.colors(count) + texture)
    shapes = (2 ** palette.uniform(count, high=MOST_SHAPES_POWER)).long() * ~is_texture
    for layer in range(int(shapes.max())):
        (drawn,) = torch.nonzero(shapes.flatten() > layer, as_tuple=True)
        mask = palette.masks(len(drawn))
        fill = palette.colors(len(drawn)) + texture[drawn]
        images[drawn] = images[drawn].lerp(fill, mask)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


class _Palette:
    """What images are put together from; one value of a draw an image, as (N, 1, 1, 1)."""

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        self._generator = generator
        self._channels, self._height, self._width = shape
        side = max(self._height, self._width)
        self._pixel = 1 / side
        self._rows = ((torch.arange(self._height) + 0.5) / side).view(1, 1, -1, 1)
        self._columns = ((torch.arange(self._width) + 0.5) / side).view(1, 1, 1, -1)

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0, channels: int = 1) -> Tensor:
        return torch.rand(count, channels, 1, 1, generator=self._generator) * (high - low) + low

    def colors(self, count: int) -> Tensor:
        """From gray to fully colored: (N, C, 1, 1)."""
        return self.uniform(count).lerp(self.uniform(count, channels=self._channels), self.uniform(count))

    def textures(self, count: int) -> Tensor:
        """``random_fields``: (N, C, H, W)."""
        return random_fields(count, (self._channels, self._height, self._width), self._generator)

    def masks(self, count: int) -> Tensor:
        """One shape an image, somewhere, of any size, turned: coverage from 0 to 1, (N, 1, H, W)."""
        radius = SMALLEST * (LARGEST / SMALLEST) ** self.uniform(count)
        stretch = 2 ** self.uniform(count, -1, 1)
        across, along = radius * stretch, radius / stretch
        turn = self.uniform(count, high=math.pi)
        rows = self._rows - self.uniform(count, high=self._height * self._pixel)
        columns = self._columns - self.uniform(count, high=self._width * self._pixel)
        u = (turn.cos() * columns + turn.sin() * rows).abs() / across
        v = (turn.cos() * rows - turn.sin() * columns).abs() / along
        kind = torch.randint(len(EXPONENTS), (count, 1, 1, 1), generator=self._generator)
        exponent = torch.tensor(EXPONENTS)[kind]
        distance = (u**exponent + v**exponent) ** (1 / exponent)
        soft = self._pixel / torch.minimum(across, along)
        mask = ((1 - distance) / soft + 0.5).clamp(0, 1)
        hole = ((self.uniform(count, 0.4, 0.8) - distance) / soft + 0.5).clamp(0, 1)
        is_hollow = self.uniform(count) < HOLLOW_SHARE
        return torch.where(is_hollow, (mask - hole).clamp_min(0), mask)
