"""The floor of synthesis: the time that the convolutions and linear layers alone would take.

A ``Floor`` watches one real round and notes every call of a ``Conv2d`` or ``Linear`` in teacher,
student and generator: its input, and which gradients the round needs of it. ``run`` then performs
exactly these operations again, as often as the round does, and nothing else: no BatchNorm, activation,
addition, upsampling, loss, optimizer, augmentation or autograd graph.

So the floor does, for each inner step,
- teacher: every layer forward and backward with respect to its input, the first layer included, since the
  image needs its gradient; no weight gradients, since the teacher is frozen;
- student: the same, where the adversarial term is on;
- generator: every layer forward and backward with respect to its weights, its bias and its input, the
  first layer's input being the latents, which are adapted too.

Each operation works on tensors of its own, in the shapes, memory format and dtype that the real round used,
and calls the kernels that autograd calls (``aten::convolution_backward`` with the gradients that are needed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a layer, with tensors to repeat it on."""

    layer: nn.Conv2d | nn.Linear
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output_gradient: Tensor
    needs: tuple[bool, bool, bool]
    """Whether the gradients of input, weight and bias are needed."""

    def forward(self) -> Tensor:
        """The layer's output."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(self.input, self.weight, self.bias)
        return F.conv2d(self.input, self.weight, self.bias, *self._geometry)

    def backward(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias; None where one is not needed."""
        if isinstance(self.layer, nn.Linear):
            return self._backward_linear()
        stride, padding, dilation, groups = self._geometry
        bias_sizes = None if self.bias is None else list(self.bias.shape)
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
            self.output_gradient,
            self.input,
            self.weight,
            bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            list(self.needs),
        )
        return gradients

    def _backward_linear(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        of_input, of_weight, of_bias = self.needs
        return (
            self.output_gradient @ self.weight if of_input else None,
            self.output_gradient.T @ self.input if of_weight else None,
            self.output_gradient.sum(0) if of_bias else None,
        )

    @property
    def _geometry(self) -> tuple[Any, Any, Any, int]:
        assert isinstance(self.layer, nn.Conv2d)
        assert self.layer.padding_mode == "zeros", "other modes pad in an operation of their own"
        return self.layer.stride, self.layer.padding, self.layer.dilation, self.layer.groups


@contextmanager
def calling(networks: Iterable[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    """While this is open, ``hook(layer, inputs, output)`` follows every convolutional and linear layer."""
    with ExitStack() as stack:
        for network in networks:
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    stack.callback(layer.register_forward_hook(hook).remove)
        yield


def _note(calls: list[Call], most: int, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if len(calls) == most:
        return
    bias = layer.bias
    calls.append(
        Call(
            layer=layer,
            # Under autocast the operation works in the dtype of its output. ``clone`` keeps the memory format.
            input=inputs[0].detach().to(output.dtype).clone(),
            weight=layer.weight.detach().to(output.dtype).clone(),
            bias=None if bias is None else bias.detach().to(output.dtype).clone(),
            output_gradient=torch.randn_like(output.detach()),
            # An output without a graph (a teacher under no_grad) sends nothing back, whatever its weights could take.
            needs=(
                output.requires_grad and inputs[0].requires_grad,
                output.requires_grad and layer.weight.requires_grad,
                output.requires_grad and bias is not None and bias.requires_grad,
            ),
        )
    )


class Floor:
    """The operations of one inner step, repeated for all steps of a round.

    Args:
        networks: teacher, student and the generator that is adapted.
        round_of_work: does one real round.
        steps: inner steps of a round.

    Raises:
        RuntimeError: the steps of a round do not call the same layers.
    """

    def __init__(self, networks: Iterable[nn.Module], round_of_work: Callable[[], object], steps: int) -> None:
        networks = list(networks)
        layers: list[nn.Module] = []
        with calling(networks, lambda layer, *_: layers.append(layer)):
            round_of_work()
        calls_per_step, rest = divmod(len(layers), steps)
        if not layers or rest or layers != layers[:calls_per_step] * steps:
            raise RuntimeError(f"the {steps} steps of a round make {len(layers)} layer calls that are not alike")
        self.calls: list[Call] = []
        with calling(networks, partial(_note, self.calls, calls_per_step)):
            round_of_work()
        self.steps = steps

    @torch.no_grad()
    def run(self) -> None:
        """One round's worth: each step forward through all layers, then backward through them in reverse."""
        for _ in range(self.steps):
            for call in self.calls:
                call.forward()
            for call in reversed(self.calls):
                if any(call.needs):
                    call.backward()

    def describe(self) -> dict[str, int]:
        """Counts, for the record."""
        return {
            "layer_calls_per_round": len(self.calls) * self.steps,
            "with_input_gradient": sum(call.needs[0] for call in self.calls) * self.steps,
            "with_weight_gradient": sum(call.needs[1] for call in self.calls) * self.steps,
        }
