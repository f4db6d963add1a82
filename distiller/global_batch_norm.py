"""BatchNorm over the images of all ranks: a batch is normalized alike, however many ranks share it.

torch's ``SyncBatchNorm`` does so on GPUs alone, and is another class of layer, which a student that is exported would
keep. Here the layers stay what they are, and only while a step runs their ``forward`` is another. Means and variances
of the parts are put together as Chan, Golub and LeVeque do, without the cancellation of ``E[x²] - E[x]²``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller.ranks import RankGroup, Ranks

LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Exactly these: what a user's own layer does in training is not known here, so it sees its rank's part."""


@contextmanager
def global_statistics(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """While this is open, BatchNorm layers in training mode see the images of all ranks, where the group wants that."""
    if not isinstance(ranks, RankGroup) or not ranks.global_statistics:
        yield
        return
    layers = [module for module in network.modules() if type(module) in LAYERS]
    try:
        for layer in layers:
            # An instance attribute shadows the method.
            layer.forward = partial(_evaluate, layer, ranks)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _evaluate(layer: Any, ranks: RankGroup, activation: Tensor) -> Tensor:
    if not layer.training or layer.running_mean is None:
        result: Tensor = type(layer).forward(layer, activation)
        return result
    output, mean, variance, count = _Normalize.apply(activation, layer.weight, layer.bias, layer.eps, ranks)
    with torch.no_grad():
        layer.num_batches_tracked.add_(1)
        momentum = layer.momentum
        if momentum is None:
            momentum = 1 / float(layer.num_batches_tracked)
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)
    return output  # type: ignore[no-any-return]


class _Normalize(torch.autograd.Function):
    """(activation (N, C, …), weight, bias, eps, ranks) → output, mean (C,), biased variance (C,), values a channel."""

    @staticmethod
    def forward(
        ctx: Any, activation: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: RankGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = torch.promote_types(activation.dtype, torch.float32)
        values = activation.to(exact)
        axes = [axis for axis in range(activation.ndim) if axis != 1]
        own_count = torch.full_like(values[0, :1].flatten()[:1], activation.numel() // activation.shape[1])
        own_variance, own_mean = torch.var_mean(values, axes, correction=0)
        parts = ranks.stack(torch.cat([own_mean, own_variance, own_count]))
        channels = activation.shape[1]
        means, variances, counts = parts[:, :channels], parts[:, channels : 2 * channels], parts[:, 2 * channels :]
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(activation, weight, mean, variance, count)
        ctx.eps, ctx.ranks, ctx.has_bias = eps, ranks, bias is not None
        output = F.batch_norm(activation, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        gradient = gradients[0]
        activation, weight, mean, variance, count = ctx.saved_tensors
        axes = [axis for axis in range(activation.ndim) if axis != 1]
        shape = (1, -1) + (1,) * (activation.ndim - 2)
        exact = torch.promote_types(activation.dtype, torch.float32)
        normalized = F.batch_norm(activation.to(exact), mean, variance, training=False, eps=ctx.eps)
        gradient_exact = gradient.to(exact)
        sums = torch.stack([gradient_exact.sum(axes), (gradient_exact * normalized).sum(axes)])
        of_bias, of_weight = sums.clone()
        ctx.ranks.sum(sums)
        scale = (variance + ctx.eps).rsqrt() if weight is None else (variance + ctx.eps).rsqrt() * weight
        by_mean, by_scale = sums / count
        of_activation = (gradient_exact - by_mean.view(shape) - normalized * by_scale.view(shape)) * scale.view(shape)
        return (
            of_activation.to(activation.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            of_bias if ctx.has_bias else None,
            None,
            None,
        )
