"""Tensors that only know shape, type and device: what a GPU would refuse or wait for, found without one.

Under ``FakeTensorMode`` operations on the device ``cuda`` run where there is none: two devices in one operation are an
error, and so is every look at a value (``.item()``, ``nonzero``), for which a real GPU would be waited for. Backward
passes work on fake CPU tensors only: forward passes are checked on fake ``cuda``, whole loops on fake CPU tensors.
What this cannot tell: what kernels compute, memory, speed, streams, whether pinned copies overlap, and CUDA autocast,
which torch switches off where there is no CUDA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_SHAPES = torch.library.Library("aten", "IMPL")


def _statistics(activation: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(activation.dtype, torch.float32)
    mean, variance = (activation.new_empty(activation.shape[1], dtype=dtype) for _ in range(2))
    return mean, variance


# The one operation of ours that torch cannot fake by itself.
_SHAPES.impl("batch_norm_update_stats", _statistics, "Meta")


def fake(value: Tensor, mode: FakeTensorMode, device: str) -> Tensor:
    """A tensor's shape, type and layout, on a device that need not exist."""
    with mode:
        made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
    return made.requires_grad_(value.requires_grad)


def fake_in_place(network: nn.Module, mode: FakeTensorMode, device: str) -> None:
    """Exchanges all parameters, gradients and buffers of a network for fakes."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                replaced = nn.Parameter(fake(parameter.detach(), mode, device), parameter.requires_grad)
                if parameter.grad is not None:
                    replaced.grad = fake(parameter.grad, mode, device)
                module._parameters[name] = replaced
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer, mode, device)


WAITS = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}
)
"""Operations whose result the host has to wait for."""


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: looks at values, and copies from a device to the host.

    On real CPU tensors a copy to the host is none; use fake ``cuda`` for those.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in WAITS:
            self.counted[name.removeprefix("aten::")] += 1
        tensors = [each for each in args if isinstance(each, Tensor)]
        comes_from_a_gpu = any(each.device.type == "cuda" for each in tensors)
        if isinstance(answer, Tensor) and answer.device.type == "cpu" and comes_from_a_gpu:
            self.counted["copy to the host"] += 1
        return answer

    @property
    def total(self) -> int:
        """All of them."""
        return self.counted.total()


def watch_layers(network: nn.Module, note: Callable[[str, nn.Module, Tensor, Tensor], None]) -> None:
    """Has every convolutional and linear layer tell its name, itself, its input and its output."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, output, name=name: note(name, layer, inputs[0], output))
