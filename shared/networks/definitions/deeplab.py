"""DeepLabV3 (Chen et al., 2017) as public data-free distillation code has it, and small ones for CPUs.

DFAD and Fast-Datafree both distil DeepLabV3 with a ResNet-50 into one with a MobileNetV2, under different names and
with different dilations, which a ``state_dict`` does not tell. ``variant`` says whose network it is; its checkpoints
then load key for key. With ``variant="torchvision"`` the ResNet-50 is torchvision's ``deeplabv3_resnet50``, whose
dictionary is taken off.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50

from shared.networks.definitions.layers import convolution, initialize

Variant = Literal["dfad", "fast-datafree", "torchvision"]
RATES: Final[dict[str, tuple[int, int, int]]] = {
    "dfad": (12, 24, 32),
    "fast-datafree": (12, 24, 36),
    "torchvision": (12, 24, 36),
}
"""Dilations of the atrous pyramid at output stride 8; half of them at 16."""

PYRAMID_CHANNELS = 256


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the same map looked at with several dilations, and as a whole."""

    def __init__(self, in_channels: int, rates: Sequence[int], channels: int, dropout: float) -> None:
        super().__init__()
        branches: list[nn.Module] = [nn.Sequential(*_unit(in_channels, channels, kernel=1))]
        branches += [nn.Sequential(*_unit(in_channels, channels, kernel=3, dilation=rate)) for rate in rates]
        branches.append(WholeMap(in_channels, channels))
        self.convs = nn.ModuleList(branches)
        joined = len(branches) * channels
        self.project = nn.Sequential(*_unit(joined, channels, kernel=1), nn.Dropout(dropout))

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h, w)."""
        joined: Tensor = self.project(torch.cat([branch(features) for branch in self.convs], dim=1))
        return joined


class WholeMap(nn.Sequential):
    """The mean over the map, brought back to its size."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_unit(in_channels, channels, kernel=1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h, w)."""
        pooled: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return F.interpolate(pooled, size=features.shape[-2:], mode="bilinear", align_corners=False)


def _unit(in_channels: int, channels: int, *, kernel: int, dilation: int = 1) -> tuple[nn.Module, ...]:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
    return layer, nn.BatchNorm2d(channels), nn.ReLU()


def _head(in_channels: int, num_classes: int, rates: Sequence[int], channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        Pyramid(in_channels, rates, channels, dropout),
        *_unit(channels, channels, kernel=3),
        nn.Conv2d(channels, num_classes, 1),
    )


class WrappedHead(nn.Module):
    """Fast-Datafree's head: the same under one more name."""

    def __init__(self, head: nn.Sequential) -> None:
        super().__init__()
        self.classifier = head

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, num_classes, h, w)."""
        logits: Tensor = self.classifier(features)
        return logits


class DeepLab(nn.Module):
    """A backbone, an atrous pyramid, and logits brought to the size of the image."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, C, H, W) → logits (N, num_classes, H, W)."""
        logits = self.classifier(self.backbone(images))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class DeepLabV3ResNet50(DeepLab):
    """DeepLabV3 with a ResNet-50.

    Args:
        variant: whose names and dilations.
        output_stride: image pixels per cell of the last map: 8, or 16 for half the memory.
        dropout: after the pyramid.
    """

    def __init__(
        self,
        num_classes: int = 13,
        in_channels: int = 3,
        *,
        variant: Variant = "fast-datafree",
        output_stride: Literal[8, 16] = 8,
        dropout: float = 0.1,
    ) -> None:
        rates = _rates(variant, output_stride, RATES)
        trunk = resnet50(weights=None, replace_stride_with_dilation=[False, output_stride == 8, True])
        if in_channels != 3:
            trunk.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        backbone = nn.Sequential(OrderedDict((name, getattr(trunk, name)) for name in names))
        head = _head(2048, num_classes, rates, PYRAMID_CHANNELS, dropout)
        super().__init__(backbone, WrappedHead(head) if variant == "fast-datafree" else head)


class DeepLabV3MobileNetV2(DeepLab):
    """DeepLabV3 with a MobileNetV2: DFAD's and Fast-Datafree's students, which are two different networks.

    Args:
        variant: ``dfad`` or ``fast-datafree``.
        output_stride: image pixels per cell of the last map: 8, or 16 for half the memory.
        dropout: after the pyramid.
    """

    def __init__(
        self,
        num_classes: int = 13,
        in_channels: int = 3,
        *,
        variant: Literal["dfad", "fast-datafree"] = "fast-datafree",
        output_stride: Literal[8, 16] = 8,
        dropout: float = 0.1,
    ) -> None:
        rates = _rates(variant, output_stride, ("dfad", "fast-datafree"))
        head = _head(320, num_classes, rates, PYRAMID_CHANNELS, dropout)
        backbone = MobileNetV2(in_channels, output_stride, nested=variant == "fast-datafree")
        super().__init__(backbone, WrappedHead(head) if variant == "fast-datafree" else head)


def _rates(variant: str, output_stride: int, variants: Sequence[str] | dict[str, tuple[int, int, int]]) -> list[int]:
    if variant not in variants:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(variants)}")
    if output_stride not in (8, 16):
        raise ValueError(f"output_stride is {output_stride}; it must be 8 or 16")
    return [rate * 8 // output_stride for rate in RATES[variant]]


STAGES: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""MobileNetV2's: expansion, channels, blocks, stride of the first."""

LOW_LEVEL = 4
"""Fast-Datafree keeps so many blocks under a name of their own."""


class MobileNetV2(nn.Module):
    """MobileNetV2 without its last 1×1 convolution, dilated where a stride would go beyond ``output_stride``.

    Both forms pad a block's *input*, before the expansion, so the border is not zero at the depthwise convolution.

    Args:
        in_channels: of the images.
        output_stride: 8 or 16.
        nested: Fast-Datafree's form: torchvision's names, no padding at the first convolution, and the first block of
            a dilated stage keeps the dilation of the stage before. DFAD's otherwise: flat names, one dilation a stage.
    """

    def __init__(self, in_channels: int, output_stride: int, *, nested: bool) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, stride=2, padding=0 if nested else 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
        )
        blocks: list[nn.Module] = [stem]
        width, stride_so_far, dilation = 32, 2, 1
        for expansion, channels, count, stride in STAGES:
            is_dilated = stride_so_far == output_stride
            before = dilation if is_dilated else 1
            dilation = before * stride if is_dilated else 1
            stride_so_far *= 1 if is_dilated else stride
            for number in range(count):
                first = number == 0
                block_dilation = before if first or not nested else dilation
                block_stride = stride if first and not is_dilated else 1
                blocks.append(InvertedResidual(width, channels, expansion, block_stride, block_dilation, nested=nested))
                width = channels
        if nested:
            self.low_level_features = nn.Sequential(*blocks[:LOW_LEVEL])
            self.high_level_features = nn.Sequential(
                OrderedDict((str(number), block) for number, block in enumerate(blocks) if number >= LOW_LEVEL)
            )
        else:
            self.features = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 320, h, w)."""
        for part in self.children():
            images = part(images)
        return images


class InvertedResidual(nn.Module):
    """Expand, depthwise 3×3 without padding of its own, project; added to the input where shapes allow."""

    def __init__(
        self, in_channels: int, channels: int, expansion: int, stride: int, dilation: int, *, nested: bool
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.is_residual = stride == 1 and in_channels == channels
        width = in_channels * expansion
        parts: list[tuple[nn.Module, ...]] = []
        if expansion != 1:
            parts.append((nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()))
        depthwise = nn.Conv2d(width, width, 3, stride=stride, dilation=dilation, groups=width, bias=False)
        parts.append((depthwise, nn.BatchNorm2d(width), nn.ReLU6()))
        last = (nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
        if nested:
            self.conv = nn.Sequential(*(nn.Sequential(*part) for part in parts), *last)
        else:
            self.conv = nn.Sequential(*(layer for part in parts for layer in part), *last)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h/stride, w/stride)."""
        result: Tensor = self.conv(F.pad(features, (self.dilation,) * 4))
        return features + result if self.is_residual else result


class SmallDeepLab(nn.Module):
    """A DeepLab for small images and CPUs, with the decoder of DeepLabV3+ (Chen et al., 2018).

    A residual network of output stride 4 and a pyramid of small dilations say what there is; features of stride 2 say
    where it ends.

    Args:
        width: channels of the first stage; the last has four times as many.
        dropout: after the pyramid.
    """

    def __init__(self, num_classes: int = 11, in_channels: int = 3, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_unit(in_channels, width, kernel=3))
        self.layer1 = Residual(width, width, stride=2)
        self.layer2 = Residual(width, 2 * width, stride=2)
        self.layer3 = Residual(2 * width, 4 * width, dilation=2)
        self.layer4 = Residual(4 * width, 4 * width, dilation=2)
        self.pyramid = Pyramid(4 * width, (2, 4, 6), 2 * width, dropout)
        self.decoder = nn.Sequential(*_unit(3 * width, 2 * width, kernel=3), nn.Conv2d(2 * width, num_classes, 1))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, C, H, W) → logits (N, num_classes, H, W)."""
        fine = self.layer1(self.stem(images))
        coarse = self.pyramid(self.layer4(self.layer3(self.layer2(fine))))
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.decoder(torch.cat([fine, coarse], dim=1))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else Shortcut(in_channels, channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h/stride, w/stride)."""
        out = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(features))


class Shortcut(nn.Sequential):
    """A 1×1 convolution of every ``stride``-th pixel.

    The pixels are picked before the convolution rather than by its stride: the gradient of a strided 1×1 convolution
    with 8 channels in channels_last corrupts memory in torch 2.14.1 (oneDNN, CPU).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(convolution(in_channels, channels, kernel=1), nn.BatchNorm2d(channels))
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h/stride, w/stride)."""
        picked: Tensor = super().forward(features[:, :, :: self.stride, :: self.stride])  # type: ignore[no-untyped-call]
        return picked
