"""A user's own network, as the service meets it: a factory in an importable module."""

from torch import nn


def tiny(num_classes: int, channels: int = 1) -> nn.Module:
    """Two convolutions with BatchNorm, then a linear layer."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )
