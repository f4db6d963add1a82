"""Writes ``shared/weight_files/fingerprints.json``: by which names and shapes networks are recognized.

Run ``python -m shared.networks.fingerprints`` after a change of the registry or of torchvision; a test compares.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator

import torch
import torchvision
from torch import nn

from shared.networks.building import build_network
from shared.specs import InputSpec, NetworkSpec
from shared.specs.architectures import ARCHITECTURES
from shared.weight_files.fingerprints import PATH, Fingerprint, names_hash, shapes_hash

NUM_CLASSES = 10


def fingerprints(archs: Iterator[str]) -> dict[str, list[list[str]]]:
    """Of networks by name, as the file holds them; those that need more than a name are left out."""
    found: defaultdict[str, list[list[str]]] = defaultdict(list)
    for arch in archs:
        network = _build(arch)
        if network is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
            layers = [name for name, shape in shapes.items() if name.endswith("weight") and len(shape) in (2, 4)]
            print_ = Fingerprint(arch, layers[0], layers[-1], shapes_hash(shapes, layers[0], layers[-1]))
            found[names_hash(shapes)].append(list(print_))
    return dict(sorted(found.items()))


def known_archs() -> Iterator[str]:
    """The registry, and torchvision's classifiers and segmentation networks."""
    yield from (name for name in ARCHITECTURES if name not in ("wide_resnet", "resnet_cifar", "deeplab"))
    for room in (torchvision.models, torchvision.models.segmentation):
        yield from (f"torchvision:{name}" for name in torchvision.models.list_models(module=room))


def _build(arch: str) -> nn.Module | None:
    size = 32 if ":" not in arch else 224
    if ":" in arch:
        is_classifier = arch.partition(":")[2] in torchvision.models.list_models(module=torchvision.models)
        task = "classification" if is_classifier else "semantic-segmentation"
    else:
        task = ARCHITECTURES[arch].task
    input = InputSpec(height=size, width=size)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build_network(NetworkSpec(arch=arch), num_classes=NUM_CLASSES, task=task, input=input)
    except Exception:
        return None


if __name__ == "__main__":
    PATH.write_text(json.dumps(fingerprints(known_archs()), indent=0) + "\n")
