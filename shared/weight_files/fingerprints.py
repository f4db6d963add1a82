"""Which network a checkpoint is of, told from the names and shapes of its weights, without torch.

``fingerprints.json`` has, under the hash of their names, the networks whose weights are named so: the first
convolution and the last layer, whose shapes follow from the job (color channels, classes), and the hash of all other
shapes. ``python -m shared.networks.fingerprints`` writes it; a test compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from shared.weight_files.inspection import TensorEntry
from shared.weight_files.outer_layers import Shapes, input_channels, output_classes
from shared.weight_files.wrappers import SeveralNetworks, bare_names

PATH = Path(__file__).with_name("fingerprints.json")


class Fingerprint(NamedTuple):
    """One network that has certain names."""

    arch: str
    first: str
    last: str
    shapes: str


class Likeness(NamedTuple):
    """What the weights tell of their network."""

    architectures: tuple[str, ...] = ()
    num_classes: int | None = None
    input_channels: int | None = None


def recognize(tensors: Sequence[TensorEntry]) -> Likeness:
    """The networks that have such weights, and what only a job says of them."""
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    try:
        found = bare_names(shapes, lambda names: names_hash(names) in known())
    except SeveralNetworks:
        return Likeness()
    shapes = {name: shapes[each] for name, each in found.items()}
    alike = _alike(shapes)
    if alike:
        first, last = shapes[alike[0].first], shapes[alike[0].last]
        return Likeness(tuple(each.arch for each in alike), last[0], first[1])
    return Likeness(num_classes=output_classes(shapes), input_channels=input_channels(shapes))


def names_hash(names: Iterable[str]) -> str:
    """Stands for the names of weights, in whatever order."""
    return _hash(name for name in names if _counts(name))


def shapes_hash(shapes: Shapes, first: str, last: str) -> str:
    """Stands for the shapes, but for the inputs of the first layer and the outputs of the last."""
    last_layer = last.rpartition(".")[0]
    parts = []
    for name, shape in shapes.items():
        if _counts(name):
            free = list(shape)
            if name == first and len(free) > 1:
                free[1] = 0
            if name.rpartition(".")[0] == last_layer and free:
                free[0] = 0
            parts.append(f"{name} {free}")
    return _hash(parts)


@cache
def known() -> dict[str, list[Fingerprint]]:
    """Fingerprints by the hash of the names."""
    content: dict[str, list[list[str]]] = json.loads(PATH.read_text())
    return {names: [Fingerprint(*each) for each in alike] for names, alike in content.items()}


def _counts(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _alike(shapes: Shapes) -> list[Fingerprint]:
    named_so = known().get(names_hash(shapes), [])
    return [each for each in named_so if shapes_hash(shapes, each.first, each.last) == each.shapes]
