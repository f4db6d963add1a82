"""The three-stage ResNets of the CIFAR section of He et al. (CVPR 2016): resnet8 to resnet110 and the x4 variants.

Names of the ``state_dict`` are those of RepDistiller checkpoints. The networks of the paper itself have shortcuts
without weights (its option A), and public checkpoints of theirs end in a layer ``linear``: ``PlainShortcutResNet``. The
family is small and scales by depth
and widths, so it is the one to take for small teachers and students of one's own:
``{"arch": "resnet_cifar", "kwargs": {"depth": 14, "widths": [8, 8, 16, 32]}}``.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from shared.networks.definitions.layers import convolution, global_average, initialize


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut, projected where the block changes width or resolution."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = (
            None
            if stride == 1 and in_channels == width
            else nn.Sequential(convolution(in_channels, width, kernel=1, stride=stride), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, width, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """A stem and three stages; the second and third halve the resolution.

    Args:
        depth: 6n + 2 layers for n ≥ 1 blocks in each stage.
        widths: channels of the stem and of the three stages.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        depth: int,
        widths: Sequence[int] = (16, 16, 32, 64),
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; this ResNet has 6n + 2 layers: 8, 14, 20, 26, 32, …")
        if len(widths) != 4 or min(widths) < 1:
            raise ValueError(f"widths is {list(widths)}; it must be four numbers of at least 1: stem and three stages")
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = convolution(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(blocks, stem, stages[0], 1)
        self.layer2 = _stage(blocks, stages[0], stages[1], 2)
        self.layer3 = _stage(blocks, stages[1], stages[2], 2)
        self.fc = nn.Linear(stages[2], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) → logits (N, num_classes)."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.fc(global_average(out))
        return logits


class PlainShortcutBlock(nn.Module):
    """The same, around a shortcut without weights: every second pixel, and black channels on both sides."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.missing = width - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        before = self.missing // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))
        return F.relu(out + shortcut)


class PlainShortcutResNet(nn.Module):
    """ResNet-20 to ResNet-110 as He et al. trained them on CIFAR-10: shortcuts without weights.

    Args:
        depth: 6n + 2 layers for n ≥ 1 blocks in each stage.
    """

    WIDTHS = (16, 32, 64)

    def __init__(self, num_classes: int = 10, in_channels: int = 3, *, depth: int) -> None:
        super().__init__()
        first, second, third = self.WIDTHS
        blocks = (depth - 2) // 6
        self.conv1 = convolution(in_channels, first)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(blocks, first, first, 1, PlainShortcutBlock)
        self.layer2 = _stage(blocks, first, second, 2, PlainShortcutBlock)
        self.layer3 = _stage(blocks, second, third, 2, PlainShortcutBlock)
        self.linear = nn.Linear(third, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, C, H, W) → logits (N, num_classes)."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(global_average(out))
        return logits


def _stage(
    blocks: int,
    in_channels: int,
    width: int,
    stride: int,
    block: type[BasicBlock | PlainShortcutBlock] = BasicBlock,
) -> nn.Sequential:
    return nn.Sequential(block(in_channels, width, stride), *(block(width, width, 1) for _ in range(blocks - 1)))
