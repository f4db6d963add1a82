"""Which networks a job may name: ``ARCHITECTURES`` and the four forms for networks from elsewhere.

An architecture is written as a name of ``ARCHITECTURES``, ``torchvision:NAME``, ``timm:NAME``,
``transformers:MODEL_TYPE`` or ``package.module:factory``. This module only says what exists and what is well-formed;
it imports no torch, so that the API can refuse a misspelt name. ``shared.networks.building`` makes the network.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True)
class Architecture:
    """A network that ships with this package, described without importing it."""

    constructor: str
    """``module:class``, imported when the network is built."""
    family: str
    description: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the name stands for; the job's ``kwargs`` may add to these, not change them."""
    task: str = "classification"
    """What the network does."""


def _wide_resnet(depth: int, width: int) -> tuple[str, Architecture]:
    return f"wrn{depth}_{width}", Architecture(
        "shared.networks.definitions.wide_resnet:WideResNet",
        "wide_resnet",
        f"Wide ResNet of depth {depth} and widening factor {width}",
        {"depth": depth, "width": width},
    )


def _resnet(depth: int, block: str, *blocks: int) -> tuple[str, Architecture]:
    return f"resnet{depth}", Architecture(
        "shared.networks.definitions.resnet:ResNet",
        "resnet",
        f"ResNet-{depth} with four stages and a stem for small images",
        {"blocks": blocks, "block": block},
    )


def _resnet_cifar(name: str, depth: int, *widths: int) -> tuple[str, Architecture]:
    return name, Architecture(
        "shared.networks.definitions.resnet_cifar:CifarResNet",
        "resnet_cifar",
        f"ResNet of depth {depth} with three stages of {', '.join(map(str, widths[1:]))} channels",
        {"depth": depth, "widths": widths},
    )


def _resnet_cifar_a(depth: int) -> tuple[str, Architecture]:
    return f"resnet{depth}_cifar_a", Architecture(
        "shared.networks.definitions.resnet_cifar:PlainShortcutResNet",
        "resnet_cifar_a",
        f"ResNet-{depth} for CIFAR with shortcuts without weights (option A)",
        {"depth": depth},
    )


def _vgg(layers: int, *convolutions: int) -> tuple[str, Architecture]:
    return f"vgg{layers}", Architecture(
        "shared.networks.definitions.vgg:VGG",
        "vgg",
        f"VGG-{layers} with BatchNorm for small images",
        {"convolutions": convolutions},
    )


DEEPLAB: Final = "shared.networks.definitions.deeplab"


def _small_deeplab(name: str, width: int) -> tuple[str, Architecture]:
    return name, Architecture(
        f"{DEEPLAB}:SmallDeepLab",
        "deeplab",
        f"A DeepLab for CPUs of {width} to {4 * width} channels",
        {"width": width},
        task="semantic-segmentation",
    )


ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    dict(
        [
            _wide_resnet(16, 1),
            _wide_resnet(16, 2),
            _wide_resnet(28, 10),
            _wide_resnet(40, 1),
            _wide_resnet(40, 2),
            (
                "wide_resnet",
                Architecture(
                    "shared.networks.definitions.wide_resnet:WideResNet",
                    "wide_resnet",
                    "Wide ResNet of a chosen size; kwargs: depth (6n + 4), width, dropout",
                ),
            ),
            _resnet(18, "basic", 2, 2, 2, 2),
            _resnet(34, "basic", 3, 4, 6, 3),
            _resnet(50, "bottleneck", 3, 4, 6, 3),
            _resnet(101, "bottleneck", 3, 4, 23, 3),
            _resnet_cifar("resnet8", 8, 16, 16, 32, 64),
            _resnet_cifar("resnet14", 14, 16, 16, 32, 64),
            _resnet_cifar("resnet20", 20, 16, 16, 32, 64),
            _resnet_cifar("resnet32", 32, 16, 16, 32, 64),
            _resnet_cifar("resnet44", 44, 16, 16, 32, 64),
            _resnet_cifar("resnet56", 56, 16, 16, 32, 64),
            _resnet_cifar("resnet110", 110, 16, 16, 32, 64),
            _resnet_cifar("resnet8x4", 8, 32, 64, 128, 256),
            _resnet_cifar("resnet32x4", 32, 32, 64, 128, 256),
            _resnet_cifar_a(20),
            _resnet_cifar_a(32),
            _resnet_cifar_a(44),
            _resnet_cifar_a(56),
            _resnet_cifar_a(110),
            (
                "resnet_cifar",
                Architecture(
                    "shared.networks.definitions.resnet_cifar:CifarResNet",
                    "resnet_cifar",
                    "Three-stage ResNet of a chosen size; kwargs: depth (6n + 2), widths (stem and three stages)",
                ),
            ),
            _vgg(8, 1, 1, 1, 1, 1),
            _vgg(11, 1, 1, 2, 2, 2),
            _vgg(13, 2, 2, 2, 2, 2),
            _vgg(16, 2, 2, 3, 3, 3),
            _vgg(19, 2, 2, 4, 4, 4),
            (
                "deeplabv3_resnet50",
                Architecture(
                    f"{DEEPLAB}:DeepLabV3ResNet50",
                    "deeplab",
                    "DeepLabV3 with a ResNet-50; kwargs: variant (dfad, fast-datafree, torchvision), output_stride",
                    task="semantic-segmentation",
                ),
            ),
            (
                "deeplabv3_mobilenet_v2",
                Architecture(
                    f"{DEEPLAB}:DeepLabV3MobileNetV2",
                    "deeplab",
                    "DeepLabV3 with a MobileNetV2; kwargs: variant (dfad, fast-datafree), output_stride, dropout",
                    task="semantic-segmentation",
                ),
            ),
            _small_deeplab("deeplab_small", 16),
            _small_deeplab("deeplab_tiny", 8),
            (
                "deeplab",
                Architecture(
                    f"{DEEPLAB}:SmallDeepLab",
                    "deeplab",
                    "A DeepLab for CPUs of a chosen size; kwargs: width, dropout",
                    task="semantic-segmentation",
                ),
            ),
        ]
    )
)

_IDENTIFIER: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_FACTORY: Final = re.compile(rf"(?P<module>{_IDENTIFIER}(?:\.{_IDENTIFIER})*):(?P<name>{_IDENTIFIER})", re.ASCII)
# timm names may carry the tag of a weight set (`resnet50.a1_in1k`); no slash and no colon, so no hub address.
# Model types of transformers may have hyphens (`data2vec-vision`).
_ZOO_NAME: Final = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*", re.ASCII)
ZOOS: Final = ("torchvision", "timm", "transformers")
"""Model collections with a prefix of their own."""

# fmt: off
_IN_TORCHVISION: Final = frozenset((
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "densenet121", "densenet161",
    "densenet169", "densenet201", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
    "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_l",
    "efficientnet_v2_m", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet0_75",
    "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_16gf",
    "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf",
    "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf", "regnet_y_400mf",
    "regnet_y_800mf", "regnet_y_8gf", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0",
    "squeezenet1_1", "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t", "vgg11_bn", "vgg13_bn",
    "vgg16_bn", "vgg19_bn", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32", "wide_resnet101_2",
    "wide_resnet50_2",
))
# fmt: on
"""Names that only torchvision has, for a suggestion; the real list needs torch."""


_VISION_TRANSFORMER: Final = re.compile(r"(torchvision|timm):(vit|flexivit|deit3?|swin|swinv2)_", re.ASCII)


def is_vision_transformer(arch: str) -> bool:
    """Whether a name is that of a ViT, DeiT or Swin of timm or torchvision: networks without BatchNorm."""
    return _VISION_TRANSFORMER.match(arch) is not None


def check_architecture(arch: str) -> None:
    """Refuse a name that is unknown or malformed.

    Whether a collection has the model, or a factory may be imported, is not decided here.

    Raises:
        ValueError: with the near matches and where to see the list.
    """
    prefix, colon, name = arch.partition(":")
    if not colon:
        if arch not in ARCHITECTURES:
            same = arch.lower().replace("-", "_")
            is_elsewhere = same in _IN_TORCHVISION
            hint = f"; did you mean `torchvision:{same}`?" if is_elsewhere else near_matches(arch, ARCHITECTURES)
            raise ValueError(f"`{arch}` is not a known architecture{hint}; GET /architectures lists them")
    elif prefix in ZOOS:
        if not _ZOO_NAME.fullmatch(name):
            raise ValueError(f"`{arch}` is malformed: after `{prefix}:` comes a model name such as `resnet18`")
    elif not _FACTORY.fullmatch(arch):
        raise ValueError(
            f"`{arch}` is malformed: write a name of GET /architectures, `torchvision:NAME`, `timm:NAME`, "
            "`transformers:MODEL_TYPE` or `package.module:factory`"
        )


def check_factory_allowed(arch: str, allowed: Sequence[str]) -> None:
    """Refuse a ``package.module:factory`` whose module is neither one of ``allowed`` nor below one.

    Other forms of ``arch`` pass. The comparison ends at dots: ``models`` allows ``models.small``, not ``models_old``.

    Raises:
        ValueError: names the module and the setting to change.
    """
    module, colon, _ = arch.partition(":")
    if not colon or module in ZOOS:
        return
    if not any(prefix and (module == prefix or module.startswith(f"{prefix}.")) for prefix in allowed):
        listed = ", ".join(f"`{prefix}`" for prefix in allowed) or "nothing"
        raise ValueError(
            f"`{arch}`: importing `{module}` is not allowed here (allowed: {listed}); "
            "the operator adds the package to DFKD_ALLOWED_FACTORIES"
        )


def near_matches(name: str, known: Iterable[str]) -> str:
    """``; did you mean `a` or `b`?``, or nothing when no known name comes close."""
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=3)
    return f"; did you mean {' or '.join(f'`{match}`' for match in matches)}?" if matches else ""
