"""Images that the zoo's teachers are trained and measured on.

scikit-learn's digits, shapes drawn by formula (colors, places and sizes vary), and, with ``--data``, 10,000 CIFAR-10
images. Every set is (training images, labels, test images, labels): uint8 (N, C, H, W) and int64.
"""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Images = tuple[Tensor, Tensor, Tensor, Tensor]
SHAPES = 4000, 1500
"""Training and test images; of 100 classes twice as many to train on."""

COLORS: list[tuple[float, float, float]] = [
    (1, 0, 0),
    (1, 0.5, 0),
    (1, 1, 0),
    (0, 1, 0),
    (0, 0.5, 0),
    (0, 1, 1),
    (0, 0.4, 1),
    (0, 0, 0.5),
    (1, 0, 1),
]
COLORS += [(0.5, 0.25, 0)]
"""In the order of the classes where those are shapes times colors."""


@cache
def load_images(name: str, data: Path | None) -> Images:
    """A data set of the zoo.

    Args:
        name: ``digitsSIZE``, ``shapesSIZE`` or ``shapesHEIGHTxWIDTH``, with ``-2`` or ``-100`` behind it for as many
            classes (100 are ten shapes in ten colors), or ``cifar``.
        data: folder with the CIFAR-10 tars, which only ``cifar`` needs.
    """
    if name.startswith("digits"):
        return _digits(int(name.removeprefix("digits")))
    if name.startswith("shapes"):
        size, _, classes = name.removeprefix("shapes").partition("-")
        height, _, width = size.partition("x")
        drawn = int(height), int(width or height), int(classes or 10)
        count, tests = SHAPES
        return (*_shapes(2 * count if drawn[2] > 10 else count, 1, *drawn), *_shapes(tests, 2, *drawn))
    if data is None:
        raise SystemExit(f"{name} needs --data, the folder with cifar10-train.tar and cifar10-test.tar")
    return (*_tar(data / "cifar10-train.tar"), *_tar(data / "cifar10-test.tar"))


def _digits(size: int) -> Images:
    from sklearn.datasets import load_digits  # of the extra `bench`

    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    if size != 8:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images, labels = (pixels[order] * 255).round().to(torch.uint8), torch.tensor(digits.target)[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def _shapes(count: int, seed: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    random, size = np.random.RandomState(seed), min(height, width)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    images, labels = np.zeros((count, 3, height, width), np.float32), random.randint(classes, size=count)
    for number in range(count):
        (top, left), reach, turn = (
            random.uniform(0.35, 0.65, 2) * (height, width),
            random.uniform(0.2, 0.34) * size,
            random.uniform(-0.3, 0.3),
        )
        v, u = rows - top, columns - left
        v, u = np.cos(turn) * v + np.sin(turn) * u, np.cos(turn) * u - np.sin(turn) * v
        radius, period = np.hypot(u, v), random.uniform(2.2, 3.2) * size / 32
        box = np.maximum(abs(u), abs(v)) < reach
        across, down = np.sin(u * np.pi / period), np.sin(v * np.pi / period)
        shape = [
            radius < reach,
            box,
            (v < reach * 0.7) & (v > -reach + 2 * abs(u)),
            (np.minimum(abs(u), abs(v)) < reach * 0.3) & box,
            (radius < reach) & (radius > reach * 0.55),
            box & (across > 0),
            box & (down > 0),
            box & (across * down > 0),
            abs(u) + abs(v) < reach,
            box & ~(np.maximum(abs(u), abs(v)) < reach * 0.6),
        ][labels[number] % 10]
        back, front = random.uniform(0, 1, 3), random.uniform(0, 1, 3)
        while abs(back - front).mean() < 0.3:
            front = random.uniform(0, 1, 3)
        if classes > 10:
            front, back = np.array(COLORS[labels[number] // 10]), np.full(3, random.uniform(0.05, 0.95))
            front = (front + random.uniform(-0.05, 0.05, 3)).clip(0, 1)
            while abs(back - front).max() < 0.3:
                back = np.full(3, random.uniform(0.05, 0.95))
        light = (rows / height - 0.5) * random.uniform(-0.4, 0.4)
        noise = random.normal(0, 0.06, images[number].shape)
        images[number] = np.where(shape, front[:, None, None], back[:, None, None]) + light + noise
    return torch.from_numpy((images.clip(0, 1) * 255).round().astype(np.uint8)), torch.from_numpy(
        labels.astype(np.int64)
    )


def _tar(path: Path) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".cls"):
                labels.append(int(content.read()))
            elif member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")))
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), torch.tensor(labels)
