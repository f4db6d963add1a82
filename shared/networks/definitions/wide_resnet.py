"""Wide ResNets for small images (Zagoruyko & Komodakis, BMVC 2016): pre-activation blocks in three stages.

Names and shapes of the ``state_dict`` are those of CMI, Fast-Datafree and ZSKT checkpoints, which is why
attributes such as ``convShortcut`` keep their spelling.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from shared.networks.definitions.layers import convolution, global_average, initialize


class WideBasicBlock(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU, around an identity or 1×1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels)
        self.dropout = dropout
        # Equal widths mean no 1×1 shortcut, as published; the state_dict then has no such name.
        self.convShortcut = (
            None if in_channels == out_channels else convolution(in_channels, out_channels, kernel=1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H/stride, W/stride)."""
        activated = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(activated)))
        if self.dropout > 0:
            out = F.dropout(out, p=self.dropout, training=self.training)
        # The projection sees the activated input, the identity the raw one.
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        residual: Tensor = self.conv2(out)
        return residual + shortcut


class WideStage(nn.Module):
    """Blocks of one width; the first changes width and resolution."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            WideBasicBlock(in_channels, out_channels, stride, dropout),
            *(WideBasicBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H/stride, W/stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-depth-width with stages of 16, 32 and 64 times ``width`` channels.

    Args:
        depth: 6n + 4 layers for n ≥ 1 blocks in each stage.
        width: the widening factor.
        dropout: probability between the convolutions of a block, in [0, 1).
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, *, depth: int, width: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is {depth}; a wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 34, 40, …")
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        blocks = (depth - 4) // 6
        widths = (16 * width, 32 * width, 64 * width)
        self.conv1 = convolution(in_channels, 16)
        self.block1 = WideStage(blocks, 16, widths[0], 1, dropout)
        self.block2 = WideStage(blocks, widths[0], widths[1], 2, dropout)
        self.block3 = WideStage(blocks, widths[1], widths[2], 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        initialize(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) → logits (N, num_classes)."""
        out = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(global_average(F.relu(self.bn1(out))))
        return logits
