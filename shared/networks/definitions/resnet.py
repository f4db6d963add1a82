"""ResNets with the four stages of the ImageNet networks (He et al., CVPR 2016) and a stem for small images.

The stem is one 3×3 convolution of stride 1 without max pooling, so a 32×32 image still has a 4×4 map at
the end. Names of the ``state_dict`` are those of CMI and Fast-Datafree checkpoints (``shortcut``,
``linear``); torchvision's networks of the same names are other networks: write ``torchvision:resnet18``.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from shared.networks.definitions.layers import convolution, global_average, initialize


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a block: empty, so the identity, unless the block changes width or resolution."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(convolution(in_channels, out_channels, kernel=1, stride=stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; as wide at the end as inside."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, width, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1 down, 3×3, 1×1 up to four times the width; the 3×3 convolution carries the stride."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, kernel=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, width * self.expansion, kernel=1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.shortcut = projection(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 4·width, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


BLOCKS: Final[Mapping[str, type[BasicBlock] | type[Bottleneck]]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels.

    Args:
        blocks: blocks in each of the four stages.
        block: ``basic`` (ResNet-18 and -34) or ``bottleneck`` (ResNet-50 and deeper).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        blocks: Sequence[int],
        block: Literal["basic", "bottleneck"] = "basic",
    ) -> None:
        super().__init__()
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f"blocks is {list(blocks)}; it must be four numbers of at least 1")
        if block not in BLOCKS:
            raise ValueError(f"block is {block!r}; it must be one of {', '.join(BLOCKS)}")
        block_type = BLOCKS[block]
        self.conv1 = convolution(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block_type, blocks[0], 64, 64, 1)
        self.layer2 = _stage(block_type, blocks[1], 64 * block_type.expansion, 128, 2)
        self.layer3 = _stage(block_type, blocks[2], 128 * block_type.expansion, 256, 2)
        self.layer4 = _stage(block_type, blocks[3], 256 * block_type.expansion, 512, 2)
        self.linear = nn.Linear(512 * block_type.expansion, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) → logits (N, num_classes)."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.linear(global_average(out))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], blocks: int, in_channels: int, width: int, stride: int
) -> nn.Sequential:
    return nn.Sequential(
        block(in_channels, width, stride), *(block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    )
