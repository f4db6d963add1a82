"""VGG networks with BatchNorm for small images (Simonyan & Zisserman, ICLR 2015): five blocks, one linear layer.

Names of the ``state_dict`` are those of RepDistiller, CMI and Fast-Datafree checkpoints.
"""

from collections.abc import Sequence
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from shared.networks.definitions.layers import global_average, initialize

BLOCK_WIDTHS: Final = (64, 128, 256, 512, 512)
FOURTH_POOL_FROM_HEIGHT: Final = 64
"""32×32 images are halved three times, 64×64 images four times, as published."""


class VGG(nn.Module):
    """Five blocks of 3×3 convolutions, halved in between, averaged at the end.

    Args:
        convolutions: convolutions in each of the five blocks.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, *, convolutions: Sequence[int]) -> None:
        super().__init__()
        if len(convolutions) != 5 or min(convolutions) < 1:
            raise ValueError(f"convolutions is {list(convolutions)}; it must be five numbers of at least 1")
        inputs = (in_channels, *BLOCK_WIDTHS)
        self.block0 = _block(convolutions[0], inputs[0], BLOCK_WIDTHS[0])
        self.block1 = _block(convolutions[1], inputs[1], BLOCK_WIDTHS[1])
        self.block2 = _block(convolutions[2], inputs[2], BLOCK_WIDTHS[2])
        self.block3 = _block(convolutions[3], inputs[3], BLOCK_WIDTHS[3])
        self.block4 = _block(convolutions[4], inputs[4], BLOCK_WIDTHS[4])
        self.classifier = nn.Linear(BLOCK_WIDTHS[4], num_classes)
        initialize(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) → logits (N, num_classes)."""
        out = _halve(F.relu(self.block0(images)))
        out = _halve(F.relu(self.block1(out)))
        out = _halve(F.relu(self.block2(out)))
        out = F.relu(self.block3(out))
        if images.shape[2] >= FOURTH_POOL_FROM_HEIGHT:
            out = _halve(out)
        out = F.relu(self.block4(out))
        logits: Tensor = self.classifier(global_average(out))
        return logits


def _block(convolutions: int, in_channels: int, width: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, …; the last ReLU is applied outside, so the names end as published."""
    layers: list[nn.Module] = []
    for inputs in (in_channels, *[width] * (convolutions - 1)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _halve(features: Tensor) -> Tensor:
    """2×2 max pooling; a side that is down to one pixel stays, so images below 8×8 pass too."""
    height, width = features.shape[2:]
    return F.max_pool2d(features, (min(height, 2), min(width, 2)))
