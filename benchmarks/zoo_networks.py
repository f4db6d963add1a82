"""Small networks of the zoo that the service does not know: what users bring."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Convolutions, pooled, and a linear layer; with BatchNorm, GroupNorm or neither."""

    def __init__(
        self, channels: int, classes: int, widths: tuple[int, ...], *, norm: str, repeat: int = 1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for place in range(repeat):
                stride = 2 if stage and not place else 1
                layers.append(nn.Conv2d(channels, width, 3, stride, 1, bias=norm == "none"))
                if norm != "none":
                    layers.append(nn.BatchNorm2d(width, eps) if norm == "batch" else nn.GroupNorm(8, width))
                layers.append(nn.ReLU())
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


class Perceptron(nn.Module):
    """Two hidden layers on all pixels."""

    def __init__(self, inputs: int, classes: int, width: int) -> None:
        super().__init__()
        layers = (nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.fc(self.features(images))
        return logits


class Transformer(nn.Module):
    """A small ViT with patches of 4."""

    def __init__(self, channels: int, classes: int, size: int, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.places = nn.Parameter(torch.randn(1, (size // 4) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.fc(self.norm(self.encoder(tokens)).mean(1))
        return logits


@torch.no_grad()
def shrink_before_batch_norm(network: nn.Module, factor: float) -> None:
    """Divide what enters each BatchNorm by ``factor``, in place: the answers stay, the running variances do not.

    Convolutions need to stand right before their BatchNorm, and its ``eps`` far below the variances that result.
    """
    before: nn.Module | None = None
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(before, nn.Conv2d)
            assert module.running_mean is not None
            assert module.running_var is not None
            before.weight /= factor
            module.running_mean /= factor
            module.running_var /= factor**2
        before = module
