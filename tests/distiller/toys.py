"""A problem small enough to learn in a second: which quadrant of an 8×8 image is bright."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.networks.image_operations import Normalization, to_bytes, to_pixels
from shared.shards.reader import Samples
from shared.specs import InputSpec
from shared.tasks.base import build_task

INPUT = InputSpec(channels=1, height=8, width=8, mean=(0.4,), std=(0.3,))
NUM_CLASSES = 4
CPU = torch.device("cpu")
TASK = build_task("classification", NUM_CLASSES)


def toy_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 images (count, 1, 8, 8) and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    pixels = 0.7 * torch.rand(count, 1, 8, 8, generator=generator)
    quadrants = torch.zeros(NUM_CLASSES, 1, 2, 2)
    quadrants.view(NUM_CLASSES, 4).fill_diagonal_(0.25)
    return to_bytes(pixels + nn.functional.interpolate(quadrants, scale_factor=4)[labels]), labels


def toy_samples(count: int, seed: int) -> list[Samples]:
    """The same as a reader gives them."""
    images, labels = toy_images(count, seed)
    return [Samples(images.numpy(), labels.numpy())]


def toy_network(seed: int, *, width: int = 8, dropout: float = 0.0, num_classes: int = NUM_CLASSES) -> nn.Module:
    """A convolution, BatchNorm and a linear layer, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, num_classes),
        )


def toy_teacher() -> nn.Module:
    """Trained on labels, so that there is something to distil; in eval mode."""
    images, labels = toy_images(512, seed=1)
    network = toy_network(seed=1, width=16)
    inputs = Normalization(INPUT)(to_pixels(images))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network.eval()
