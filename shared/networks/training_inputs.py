"""What a network's first BatchNorm layer tells of the images that the network was trained on.

A layer that sees its inputs through convolutions alone keeps the mean and the variance of a linear function of the
pixels. The answers to a picture of one color give the mean of the inputs, and those to random smooth pictures, which
are much like natural ones in this, their deviation. Both come out within about a tenth for networks whose training
data are known (``docs/experiments.md``), which is enough to notice a normalization that cannot have been the one of
the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from shared.networks.batch_norm import SMALLEST_VARIANCE, layers_with_statistics
from shared.networks.modes import evaluating
from shared.networks.random_fields import random_fields
from shared.specs import InputSpec

PICTURES: Final = 64
LINEAR_WITHIN: Final = 1e-3
"""Of the largest answer; more, and something between input and layer is not linear."""

MOST_UNCERTAINTY: Final = 0.1
"""Of the inputs' deviation. Layers that only see differences between pixels do not tell the mean."""


@dataclass(frozen=True)
class TrainingInputs:
    """Mean and deviation of the inputs of a training, over all channels, after normalization."""

    mean: float
    deviation: float

    def in_pixels(self, input: InputSpec) -> tuple[float, float]:
        """The same for pixels from 0 to 1, if this normalization was the one of the training."""
        scale, offset = (sum(values) / len(values) for values in (input.std, input.mean))
        return self.mean * scale + offset, self.deviation * scale


@torch.no_grad()
def training_inputs(network: nn.Module, input: InputSpec) -> TrainingInputs | None:
    """What the images of a training were like; None where the network does not tell.

    It does not where it has no BatchNorm, where the first of these layers does not come right after convolutions, and
    where its filters do not see the mean.

    Args:
        network: on any device; not changed.
        input: whose shape is used.
    """
    if not layers_with_statistics(network):
        return None
    parameter = next(network.parameters(), torch.empty(0))
    ask = partial(_seen_by_first, network)
    generator = torch.Generator().manual_seed(0)
    black = torch.zeros((1, *input.shape)).to(parameter)
    with evaluating(network):
        layer, at_zero = ask(black)
        layer_again, at_one = ask(black + 1)
        _, at_two = ask(black + 2)
        _, fields = ask(random_fields(PICTURES, input.shape, generator).to(parameter))
    if layer is None or layer is not layer_again or at_zero.ndim != 4:
        return None
    offset = at_zero.mean((0, 2, 3))
    slope = at_one.mean((0, 2, 3)) - offset
    bent = at_two.mean((0, 2, 3)) - offset - 2 * slope
    if bent.abs().max() > LINEAR_WITHIN * slope.abs().max():
        return None
    variance, mean = layer.running_var.to(slope), layer.running_mean.to(slope)
    if (variance == 1).all() and (mean == 0).all():
        return None  # what a layer begins with: it was never trained
    answered = fields.var((0, 2, 3), correction=0)
    is_alive = (variance > SMALLEST_VARIANCE * variance.mean()) & (answered > 0)
    if not is_alive.any():
        return None
    deviation = ((variance[is_alive].log() - answered[is_alive].log()).mean() / 2).exp()
    # Least squares of mean ≈ offset + slope · x, each channel measured by its own deviation.
    weight = variance[is_alive].rsqrt()
    along, distance = slope[is_alive] * weight, (mean - offset)[is_alive] * weight
    leverage = along.square().sum()
    center = (along * distance).sum() / leverage
    rest = (distance - along * center).square().mean().sqrt()
    if not torch.isfinite(center) or rest / leverage.sqrt() > MOST_UNCERTAINTY * deviation:
        return None
    return TrainingInputs(float(center), float(deviation))


class _Seen(Exception):
    pass


def _seen_by_first(network: nn.Module, images: Tensor) -> tuple[Any, Tensor]:
    """The layer with statistics that is called first, and its input in float32; (None, empty) where none is called."""
    found: list[tuple[nn.Module, Tensor]] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append((layer, inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))))
        raise _Seen

    handles = [layer.register_forward_pre_hook(look) for layer in layers_with_statistics(network)]
    try:
        network(images)
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else (None, torch.empty(0))


def facts_of(network: nn.Module, input: InputSpec) -> dict[str, float]:
    """What ``shared.tasks.quality`` takes into account of a teacher before a single image is made.

    Args:
        network: the teacher as it was given; a copy with its BatchNorm layers folded away shows nothing.
        input: of the job.
    """
    facts = {"batch_norm": float(bool(layers_with_statistics(network)))}
    if (found := training_inputs(network, input)) is not None:
        mean, deviation = found.in_pixels(input)
        facts |= {"training_input_mean": found.mean, "training_input_deviation": found.deviation}
        facts |= {"training_pixel_mean": mean, "training_pixel_deviation": deviation}
    return facts
