"""Inversion: from a trained teacher to images that it takes for its training data.

Tensors in, tensors out. Nothing here knows of Redis, files or the clock, so it works from a notebook::

    inverter = build_inverter(spec, teacher, num_classes=10, input=InputSpec(), seed=0, device=torch.device("cpu"))
    batch = inverter.invert(torch.arange(64) % 10)
"""

from __future__ import annotations

import torch
from torch import nn

from shared.specs import DeepInversionSynthesis, FastMetaSynthesis, FastSynthesis, InputSpec
from synth_service.inversion.base import Inverter
from synth_service.inversion.deepinversion import DeepInversionInverter
from synth_service.inversion.fast import FastInverter
from synth_service.inversion.fast_meta import FastMetaInverter
from synth_service.inversion.objective import SyntheticBatch

__all__ = ["Inverter", "SyntheticBatch", "build_inverter"]


def build_inverter(
    spec: FastMetaSynthesis | FastSynthesis | DeepInversionSynthesis,
    teacher: nn.Module,
    *,
    num_classes: int,
    input: InputSpec,
    seed: int,
    device: torch.device,
) -> Inverter:
    """The inverter that a spec describes.

    Args:
        spec: settings; its type decides the method.
        teacher: takes normalized images of ``input`` and returns (N, num_classes) logits; moved to ``device``.
        num_classes: of the teacher.
        input: shape and normalization of the images.
        seed: equal seeds give equal bytes on the same machine; give each partition its own.
        device: where to compute.

    Raises:
        UserError: ``teacher_has_no_batchnorm`` or ``augmentation_does_not_fit``.
    """
    teacher = teacher.to(device)
    match spec:
        case FastMetaSynthesis():
            return FastMetaInverter(spec, teacher, num_classes=num_classes, input=input, seed=seed, device=device)
        case FastSynthesis():
            return FastInverter(spec, teacher, num_classes=num_classes, input=input, seed=seed, device=device)
        case DeepInversionSynthesis():
            return DeepInversionInverter(spec, teacher, num_classes=num_classes, input=input, seed=seed, device=device)
