"""Writes ``shared/weight_files/fingerprints.json``: by which names and shapes networks are recognized.

Run ``python -m shared.networks.fingerprints`` after a change of the registry or of torchvision; a test compares.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import torch
import torchvision
from torch import nn

from shared.networks.building import build_network
from shared.specs import InputSpec, NetworkSpec
from shared.specs.architectures import ARCHITECTURES
from shared.weight_files.fingerprints import PATH, Fingerprint, names_hash, shapes_hash

NUM_CLASSES = 10

OF_TIMM: Final = (
    "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "resnet26", "resnet26d", "resnet50d",
    "resnext50_32x4d", "seresnet50", "convnext_atto", "convnext_nano", "convnext_tiny", "convnextv2_atto",
    "convnextv2_nano", "efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnetv2_s", "mobilenetv2_100",
    "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "mnasnet_100", "regnetx_002",
    "regnety_002", "regnety_004", "regnety_008", "regnety_016", "densenet121", "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224", "mixer_s16_224", "mixer_b16_224", "levit_128s", "levit_256", "ghostnet_100",
    "rexnet_100", "repvgg_a0", "mobilevit_s", "mobilevit_xxs", "poolformer_s12", "xception41", "hrnet_w18",
    "fbnetc_100",
)  # fmt: skip
"""What people have trained most; all of timm would make a file of megabytes. Those that are torchvision's, too (by
names and shapes), are left out, so that a network is recognized as one where it can be."""


def fingerprints(archs: Iterator[str]) -> dict[str, list[list[str]]]:
    """Of networks by name, as the file holds them; those that need more than a name are left out."""
    found: defaultdict[str, list[list[str]]] = defaultdict(list)
    for arch in archs:
        network = _build(arch)
        if network is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
            layers = [name for name, shape in shapes.items() if name.endswith("weight") and len(shape) in (2, 4)]
            print_ = Fingerprint(arch, layers[0], layers[-1], shapes_hash(shapes, layers[0], layers[-1]))
            alike = found[names_hash(shapes)]
            if not (arch.startswith("timm:") and any(each[3] == print_.shapes for each in alike)):
                alike.append(list(print_))
    return dict(sorted(found.items()))


def known_archs() -> Iterator[str]:
    """The registry, torchvision's classifiers and segmentation networks, and some of timm's."""
    yield from (name for name in ARCHITECTURES if name not in ("wide_resnet", "resnet_cifar", "deeplab"))
    for room in (torchvision.models, torchvision.models.segmentation):
        yield from (f"torchvision:{name}" for name in torchvision.models.list_models(module=room))
    yield from (f"timm:{name}" for name in OF_TIMM)


def _build(arch: str) -> nn.Module | None:
    size = 32 if ":" not in arch else 224
    if ":" in arch:
        zoo, _, name = arch.partition(":")
        is_classifier = zoo == "timm" or name in torchvision.models.list_models(module=torchvision.models)
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
