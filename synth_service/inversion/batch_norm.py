"""Matching a teacher's BatchNorm statistics: the trace that its training data left in it.

A trained network keeps, for every BatchNorm layer, mean and variance of what the training data gave to
that layer. ``BatchNormMatching`` measures the same of synthetic images and penalises the difference.

This is where inversion can waste most of its time, because it touches every activation of the teacher
again. Both statistics are therefore taken by one call without a copy of the activation, and their
gradient needs no graph of its own: for a channel of n values it is ``∂mean/n + 2·∂var·(x - mean)/n``,
an affine function of x, which joins the layer's own backward pass (``_Observe``). The statistics of
all layers then go into one vector, so that the loss costs a dozen small kernels and not as many per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.batch_norm import layers_with_statistics, smallest_spread

PLAIN_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers whose evaluation is known exactly, so that it can be fused with the measurement."""


class BatchNormMatching:
    """Loss between a frozen network's running statistics and those of the images that pass through it.

    With momentum μ, a batch stands for more than itself: what is compared is
    ``(1-μ)·batch + μ·average``, where the average runs over the earlier rounds (from the second on).

    Args:
        network: with at least one layer of ``layers_with_statistics``.
        momentum: μ; 0 compares the batch alone.
        layer_weights: a factor for each of these layers; None weighs all alike.
        balanced: measure divergences instead of norms, see ``loss``.
    """

    def __init__(
        self,
        network: nn.Module,
        momentum: float = 0.0,
        layer_weights: Sequence[float] | None = None,
        *,
        balanced: bool = False,
    ) -> None:
        self.layers: list[Any] = layers_with_statistics(network)
        self.momentum = momentum
        self.balanced = balanced
        if layer_weights is not None and len(layer_weights) != len(self.layers):
            raise ValueError(f"{len(layer_weights)} weights for {len(self.layers)} layers with statistics")
        self._layer_weights = layer_weights
        self.average: Tensor | None = None
        """(2, all channels): mean and variance of every layer, averaged over the rounds; None before the first."""
        self._observed: dict[int, tuple[Tensor, Tensor]] = {}
        self._latest: Tensor | None = None
        self._goal: _Goal | None = None

    @contextmanager
    def observing(self) -> Iterator[None]:
        """While this is open, every forward pass of the network leaves its statistics for ``loss``."""
        undo: list[Callable[[], None]] = []
        self._goal = None  # a user may have changed the network in between
        try:
            for index, layer in enumerate(self.layers):
                if type(layer) in PLAIN_LAYERS:
                    # An instance attribute shadows the method, so that the layer is evaluated once, by us.
                    layer.forward = partial(self._evaluate, index, layer, _scale(layer))
                    undo.append(partial(delattr, layer, "forward"))
                else:
                    handle = layer.register_forward_pre_hook(partial(self._look, index))
                    undo.append(handle.remove)
            yield
        finally:
            for step in undo:
                step()
            self._observed.clear()

    def _evaluate(self, index: int, layer: Any, scale: Tensor, activation: Tensor) -> Tensor:
        output, mean, variance = _Observe.apply(activation, layer, scale)
        self._observed[index] = (mean, variance)
        return output  # type: ignore[no-any-return]

    def _look(self, index: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        activation, mean, variance = _Observe.apply(inputs[0], None, None)
        self._observed[index] = (mean, variance)
        return (activation, *inputs[1:])

    def loss(self) -> Tensor:
        """How far the statistics of the last forward pass are from those of the network.

        As published: Σ over layers of weight·(‖running_var - variance‖₂ + ‖running_mean - mean‖₂). Its size is that of
        the activations, which differ a thousandfold from network to network and from layer to layer.

        Balanced: KL(batch ‖ training) of the normal distributions that a channel's statistics stand for, in nats, mean
        over channels, then over layers. Every channel is measured by its own spread, so that 1 is far for any network;
        and its logarithm keeps a batch from being flat.

        A layer that the network did not use does not count; of one that it used twice, the last use does.
        """
        if not self._observed:
            raise UserError(
                "teacher_hides_layers",
                f"teacher.arch: none of its {len(self.layers)} layers with BatchNorm statistics is called by its "
                "forward, so there is nothing to match. Let it call them, or set the weight of bn to 0",
            )
        if self._goal is None:
            self._goal = self._make_goal(sorted(self._observed))
        order, goal, membership, layer_weights, floor = self._goal
        means, variances = zip(*(self._observed[index] for index in order), strict=True)
        batch = torch.stack([torch.cat(means), torch.cat(variances)])
        self._latest = batch.detach()
        blended = batch if self.average is None else torch.lerp(batch, self.average, self.momentum)
        if self.balanced:
            spread = goal[1] + floor
            ratio = (blended[1] + floor) / spread
            divergence = (ratio - 1 - ratio.log() + (blended[0] - goal[0]).square() / spread) / 2
            by_layer = divergence @ membership / membership.sum(0)
            return (by_layer if layer_weights is None else by_layer * layer_weights).mean()
        squares = (goal - blended).square() @ membership  # (2, layers)
        # The floor keeps the square root's gradient finite where a layer matches exactly.
        norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return (norms if layer_weights is None else norms * layer_weights).sum()

    def _make_goal(self, order: Sequence[int]) -> _Goal:
        """What the layers that were used are compared with.

        Sums over each layer's channels are a product with that matrix: one kernel, and on a GPU, unlike
        scattered additions, the same result every time.
        """
        layers = [self.layers[index] for index in order]
        goal = torch.stack(
            [torch.cat([layer.running_mean for layer in layers]), torch.cat([layer.running_var for layer in layers])]
        )
        goal = goal if goal.dtype == torch.float64 else goal.float()
        columns = [place for place, layer in enumerate(layers) for _ in range(len(layer.running_mean))]
        places = torch.arange(len(layers), device=goal.device)
        membership = (torch.tensor(columns, device=goal.device)[:, None] == places).to(goal.dtype)
        weights = None if self._layer_weights is None else goal.new_tensor([self._layer_weights[i] for i in order])
        floor = torch.cat([smallest_spread(layer).to(goal.dtype).expand(len(layer.running_mean)) for layer in layers])
        return _Goal(order, goal, membership, weights, floor)

    def update_average(self) -> None:
        """Take the last forward pass into the running average: once per round, after the inner loop.

        Updating in every step would let the average follow a batch that is still being shaped.
        """
        if self.momentum == 0 or self._latest is None:
            return
        if self.average is None:
            self.average = self._latest.clone()
        else:
            self.average = torch.lerp(self._latest, self.average, self.momentum)


class _Goal(NamedTuple):
    """The layers that a forward pass used, and what they are compared with."""

    order: Sequence[int]
    statistics: Tensor
    """(2, channels) running means and variances."""
    membership: Tensor
    """(channels, layers) of 0 and 1."""
    layer_weights: Tensor | None
    """(layers,)."""
    floor: Tensor
    """(channels,) what is added to variances before they are compared by their ratio."""


def _scale(layer: Any) -> Tensor:
    """What the layer multiplies each channel by."""
    inverse: Tensor = (layer.running_var + layer.eps).rsqrt()
    return inverse if layer.weight is None else inverse * layer.weight


class _Observe(torch.autograd.Function):
    """Mean and variance (biased) per channel of an activation, on its way through a frozen BatchNorm layer.

    Takes (N, C, …) and a plain layer with its scale; without a layer the activation passes as it is.
    Returns (output, mean, variance).
    """

    @staticmethod
    def forward(ctx: Any, activation: Tensor, layer: Any, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _statistics(activation)
        ctx.save_for_backward(activation, mean, scale)
        if layer is None:
            # A copy and no view: the layer may work in place, and its input is needed for the gradient.
            return activation.clone(), mean, variance
        output = F.batch_norm(
            activation, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
        )
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        through, by_mean, by_variance = gradients
        activation, mean, scale = ctx.saved_tensors
        count = activation.numel() // activation.shape[1]
        slope = by_variance * (2 / count)
        offset = by_mean / count - slope * mean
        if activation.dtype != slope.dtype:
            passed = through if scale is None else _affine(through, scale, torch.zeros_like(scale))
            return _affine(activation, slope, offset).add_(passed), None, None
        channels = (1, -1) + (1,) * (activation.ndim - 2)
        gradient = torch.addcmul(offset.view(channels), activation, slope.view(channels))
        if scale is None:
            gradient.add_(through)
        else:
            gradient.addcmul_(through, scale.view(channels))
        return gradient, None, None


def _statistics(activation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel; of half as many bits, too, in float32."""
    if activation.dtype in (torch.float32, torch.float64) or activation.device.type == "cuda":
        return torch.batch_norm_update_stats(activation, None, None, 0.0)
    # On a CPU, the statistics come in the type of those that they are to update, if there are any.
    zeros = torch.zeros(activation.shape[1], dtype=torch.float32, device=activation.device)
    return torch.batch_norm_update_stats(activation, zeros, zeros.clone(), 0.0)


def _affine(values: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """``slope · values + offset`` per channel: float32 inside, in the type of the values outside.

    A frozen BatchNorm is the one kernel that does so in a single pass; mixed multiplication would make a copy of the
    values in float32 first, which is most of what the layer's backward pass then costs.
    """
    zeros, ones = torch.zeros_like(slope), torch.ones_like(slope)
    return F.batch_norm(values, zeros, ones, slope.detach(), offset, training=False, eps=0.0)
