"""A frozen network without its BatchNorm layers: what they do is folded into the convolutions before them.

In evaluation mode a BatchNorm layer after a convolution is a factor and an offset for each channel, which the
convolution's own weights and bias can take. The network then says the same, in one pass less over every activation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-4
"""Of the largest logit, for what sums in another order may differ in float32."""


def folded(network: nn.Module, example: Tensor, logits: Callable[[Any], Tensor]) -> nn.Module:
    """A copy for inference with BatchNorm folded into convolutions; the network itself where that is not possible.

    Whether it says the same is tried on the example. Networks whose Python code depends on values, which cannot be
    traced, stay as they are.

    Args:
        network: in evaluation mode; not changed.
        example: what it takes.
        logits: finds them in what it returns.
    """
    try:
        with torch.no_grad():
            copied = _fold(network)
            if copied is None:
                return network
            expected, found = logits(network(example)), logits(copied(example))
            is_same = bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
    except Exception:  # whatever a stranger's code raises when it is traced: it works as it is
        return network
    return copied if is_same else network


def _fold(network: nn.Module) -> nn.Module | None:
    """None where there is nothing to fold."""
    traced = fx.symbolic_trace(copy.deepcopy(network).eval())
    layers = dict(traced.named_modules())
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    found = 0
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        norm, convolution = layers[str(node.target)], layers[str(before.target)]
        is_pair = type(norm) in BATCH_NORMS and type(convolution) in CONVOLUTIONS and norm.running_mean is not None
        # Nobody else may look at what the convolution says, and it may be asked only here.
        if not is_pair or len(before.users) > 1 or calls[str(before.target)] > 1 or calls[str(node.target)] > 1:
            continue
        parent, _, name = str(before.target).rpartition(".")
        fused = fuse_conv_bn_eval(convolution, norm)
        setattr(traced.get_submodule(parent), name, fused)
        layers[str(before.target)] = fused
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        found += 1
    if not found:
        return None
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.requires_grad_(False)
