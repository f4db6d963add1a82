"""Scenes of handwritten digits: several of scikit-learn's real ones at random places, sizes and contrasts.

Each pixel's label is the digit whose ink it shows, or ``BACKGROUND``. Training and held-out scenes are composed of
disjoint digits, the same split as in the digits example.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BACKGROUND = 10
NUM_CLASSES = 11
SIZE = 64
FEWEST_DIGITS, MOST_DIGITS = 2, 5
SMALLEST, LARGEST = 20, 34
"""Height of a digit in pixels."""
INK = 0.35
"""Share of the full ink from which a pixel belongs to the digit."""
HELD_OUT_DIGITS = 450
TRIES = 20


class Digits(NamedTuple):
    """Images (N, 8, 8) in [0, 1] and labels (N,)."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]


class Scenes(NamedTuple):
    """Images (N, 1, H, W) and label maps (N, H, W), 8 bits."""

    images: NDArray[np.uint8]
    maps: NDArray[np.uint8]


def load_split() -> tuple[Digits, Digits]:
    """The training and the held-out digits."""
    data = load_digits()
    train, held_out = train_test_split(
        np.arange(len(data.images)), test_size=HELD_OUT_DIGITS, stratify=data.target, random_state=0
    )
    return tuple(Digits(data.images[part] / 16, data.target[part]) for part in (train, held_out))  # type: ignore[return-value]


def compose(digits: Digits, count: int, random: np.random.Generator, size: tuple[int, int] = (SIZE, SIZE)) -> Scenes:
    """So many scenes of a size (height, width)."""
    scenes = [_scene(digits, random, size) for _ in range(count)]
    return Scenes(np.stack([image[None] for image, _ in scenes]), np.stack([label for _, label in scenes]))


def _scene(
    digits: Digits, random: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = size
    # A floor that is brighter on one side, with some grain.
    slope = random.uniform(-0.12, 0.12, 2)
    down, right = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    image = random.uniform(0.08, 0.3) + slope[0] * down + slope[1] * right
    label = np.full(size, BACKGROUND, np.uint8)
    area = height * width / SIZE**2
    for _ in range(round(random.integers(FEWEST_DIGITS, MOST_DIGITS + 1) * area)):
        ink, number = _ink(digits, random)
        for _ in range(TRIES):
            top, left = (random.integers(0, side - extent + 1) for side, extent in zip(size, ink.shape, strict=True))
            place = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
            if not ((label[place] != BACKGROUND) & (ink > 0.1)).any():
                break
        else:
            continue  # no room
        image[place] += ink * (random.uniform(0.45, 0.95) - image[place]) * (ink > 0.02)
        label[place][ink > INK] = number
    image += random.normal(0, 0.02, size)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), label


def _ink(digits: Digits, random: np.random.Generator) -> tuple[NDArray[np.float64], int]:
    """A digit's ink in [0, 1], enlarged; and which digit it is."""
    which = int(random.integers(len(digits.labels)))
    height = int(random.integers(SMALLEST, LARGEST + 1))
    width = max(SMALLEST - 4, round(height * random.uniform(0.8, 1.05)))
    picture = Image.fromarray(digits.images[which].astype(np.float32))
    enlarged = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.float64).clip(0, 1)
    return enlarged, int(digits.labels[which])
