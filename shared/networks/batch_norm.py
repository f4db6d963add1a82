"""The statistics that BatchNorm layers keep of a network's training data."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

SMALLEST_VARIANCE: Final = 1e-3
"""Share of its layer's mean variance that a channel's is taken to have at least: a channel that was constant in
training must not outweigh all others for a little noise."""


def layers_with_statistics(network: nn.Module) -> list[nn.Module]:
    """Every layer that keeps running statistics per channel: BatchNorm of any kind, frozen or not.

    They are recognized by what they keep rather than by their class, since frozen variants
    (torchvision's, timm's, a user's own) share no base class.
    """
    found = []
    for module in network.modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor) and mean.ndim == 1 == variance.ndim:
            found.append(module)
    return found


def smallest_spread(layer: Any) -> Tensor:
    """What is added to variances of a layer before they are compared by their ratio: a scalar above 0.

    Less than what the layer itself adds makes no difference to the network.
    """
    variance: Tensor = layer.running_var
    tiny = torch.finfo(variance.dtype).tiny
    return (float(getattr(layer, "eps", 0.0)) + SMALLEST_VARIANCE * variance.mean()).clamp_min(tiny)
