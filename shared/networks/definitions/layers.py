"""What the network families share: bias-free convolutions, global pooling and initialization."""

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, since a BatchNorm follows, padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def global_average(features: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C): the mean over all positions, whatever the image size.

    The published CIFAR networks pool by a fixed window that covers the last map of a 32×32 image;
    there this is the same number.
    """
    return F.adaptive_avg_pool2d(features, 1).flatten(1)


def initialize(network: nn.Module) -> None:
    """Kaiming-normal convolutions (He et al., ICCV 2015, fan-out) with zero biases, in place.

    BatchNorm and linear layers keep torch's own initialization.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
