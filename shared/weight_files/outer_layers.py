"""Channels and classes of a network that nobody knows, told from the shapes of its weights.

The first convolution takes the image's channels, and the last layer gives the classes. A safetensors file has its
tensors in no order of meaning, so both are found by names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

Shapes = Mapping[str, tuple[int, ...]]

MOST_CHANNELS: Final = 4
"""More inputs than that has an inner layer, far likelier than the first."""

_HEAD: Final = re.compile(r"(?:fc|classifier|heads?|linear|logits|output|last_linear|out|final)(?=\.|$)")


def input_channels(shapes: Shapes) -> int | None:
    """Inputs of the first convolution; None where no convolution takes as few as an image has.

    Depthwise convolutions take one input each, and grouped ones few, so three wins over one, and one over four.
    """
    inputs = {shape[1] for shape in shapes.values() if len(shape) == 4 and shape[1] <= MOST_CHANNELS}
    return next((channels for channels in (3, 1, 4, 2) if channels in inputs), None)


def output_classes(shapes: Shapes) -> int | None:
    """Outputs of the last layer: the only linear one, the one that is called so, or the one that no other follows."""
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith("weight")}
    linear = {name: shape for name, shape in weights.items() if len(shape) == 2}
    if len(linear) == 1:
        return next(iter(linear.values()))[0]
    pointwise = {name: shape for name, shape in weights.items() if len(shape) == 4 and shape[2:] == (1, 1)}
    for layers in (linear, pointwise):
        heads = [name for name in layers if _HEAD.search(name) and "aux" not in name.lower()]
        # The head itself stands outside of the blocks, and its own last layer has the highest number.
        outer = [name for name in heads if _HEAD.match(name)] or heads
        if outer:
            return layers[max(outer, key=lambda name: (-name.count("."), _natural(name)))][0]
    followed = {shape[1] for shape in linear.values()}
    last = [shape[0] for shape in linear.values() if shape[0] not in followed]
    return last[0] if len(last) == 1 else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``classifier.10`` after ``classifier.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
