"""Networks of the ``transformers`` library, built from the fields of their configuration alone.

``transformers:MODEL_TYPE`` with the configuration in ``kwargs`` is one of the library's own classes with fresh weights.
Nothing is downloaded, and no code from a model's folder or the hub runs: the arguments that would lead there are
refused. Imported only where such a network is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.specs import InputSpec, NetworkSpec
from shared.specs.architectures import near_matches
from shared.tasks.base import main_output
from shared.tasks.descriptions import CLASSIFICATION

SET_BY_JOB: Final = ("num_labels", "num_channels", "id2label", "label2id")
"""What the job's own fields say."""

LEADING_ELSEWHERE: Final = frozenset(
    {
        "attn_implementation", "auto_map", "backbone", "checkpoint", "code_revision", "experts_implementation",
        "quantization_config", "trust_remote_code", "use_kernels", "use_pretrained_backbone",
    }
)  # fmt: skip
"""Fields of a configuration, at any depth, by which transformers fetches weights, kernels or code."""

OF_TIMM: Final = frozenset({"timm_wrapper"})
"""A wrapper of transformers around timm, whose networks have a prefix of their own here."""

ALIKE: Final = 0.85
"""From this likeness on an unknown field is a misspelt one. Others are left from other versions, and do no harm."""


def build_from_transformers(spec: NetworkSpec, name: str, num_classes: int, input: InputSpec, task: str) -> nn.Module:
    """The classifier or segmenter of a model type, with a head for the job's classes.

    ``num_channels`` is the job's; so is ``image_size``, where the network has one and ``kwargs`` says no other.
    A segmenter's logits are brought to the size of the image, as the library's own post-processing does.

    Args:
        spec: whose ``kwargs`` are fields of the configuration.
        name: model type: `resnet`, `vit`, `segformer`, ….
        num_classes: of the head.
        input: the job's images.
        task: of the job.

    Raises:
        UserError: ``transformers_not_installed``, ``unknown_architecture`` or ``bad_network_arguments``.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSemanticSegmentation
        from transformers.models.auto import modeling_auto
    except ModuleNotFoundError as error:
        raise UserError(
            "transformers_not_installed",
            f"arch: `{spec.arch}` needs transformers, which this worker lacks; install the extra "
            "`fast-dfkd[transformers]`",
        ) from error
    is_classifier = task == CLASSIFICATION.name
    known = (
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if is_classifier
        else modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    )
    if name in OF_TIMM:
        raise UserError("unknown_architecture", f"arch: `{spec.arch}` wraps a network of timm; write `timm:NAME`")
    if name not in known:
        what = "image classifier" if is_classifier else "segmentation network"
        hint = near_matches(name, known)
        raise UserError("unknown_architecture", f"arch: transformers has no {what} of model type `{name}`{hint}")
    _refuse_arguments(spec)
    fields: dict[str, Any] = {"num_labels": num_classes, **spec.kwargs}
    try:
        default = AutoConfig.for_model(name).to_dict()
        if "num_channels" in default:
            fields["num_channels"] = input.channels
        if "image_size" in default and "image_size" not in fields:
            fields["image_size"] = input.height if input.height == input.width else [input.height, input.width]
        _refuse_misspelt(spec, default)
        config = AutoConfig.for_model(name, **fields)
        builder = AutoModelForImageClassification if is_classifier else AutoModelForSemanticSegmentation
        network: nn.Module = builder.from_config(config)
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip().split("\n", 1)[0][:300].rstrip(".")
        raise UserError(
            "bad_network_arguments",
            f"kwargs: transformers refused this configuration of `{name}`: {type(error).__name__}: {text}. They are "
            "the fields of the model's config.json",
        ) from error
    if not is_classifier:
        # A hook is copied with the network, and leaves the names of its weights alone.
        network.register_forward_hook(_at_image_size)
    return network


def _at_image_size(network: nn.Module, given: tuple[Tensor, ...], output: object) -> object:
    """Logits (N, C, h, w) → (N, C, H, W) of the images."""
    logits = main_output(output)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[2:] == given[0].shape[2:]:
        return logits
    return F.interpolate(logits, size=given[0].shape[2:], mode="bilinear", align_corners=False)


def _refuse_arguments(spec: NetworkSpec) -> None:
    for name in SET_BY_JOB:
        if name in spec.kwargs:
            raise UserError("bad_network_arguments", f"kwargs.{name} is set by the job; leave it out")
    for name in _field_names(spec.kwargs):
        if name in LEADING_ELSEWHERE or name.startswith("_"):
            raise UserError(
                "bad_network_arguments",
                f"kwargs: `{name}` is refused, since transformers may fetch weights or code by it, and nothing is "
                "downloaded; leave it out",
            )


def _field_names(value: object) -> Iterator[str]:
    """Of a configuration and of those inside it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _field_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _field_names(inner)


def _refuse_misspelt(spec: NetworkSpec, default: Mapping[str, Any]) -> None:
    """transformers takes any field, and so would build the default network from a misspelt one."""
    for name in spec.kwargs.keys() - default.keys():
        if meant := difflib.get_close_matches(name, default, n=1, cutoff=ALIKE):
            raise UserError(
                "bad_network_arguments",
                f"kwargs.{name} is no field of a `{spec.arch}` configuration; did you mean `{meant[0]}`?",
            )
