"""Inversion: from a trained teacher to images that it takes for its training data.

Tensors in, tensors out. Nothing here knows of Redis, files or the clock, so it works from a notebook::

    task = build_task("classification", num_classes=10)
    setup = Setup(teacher, task, InputSpec(), seed=0, device=torch.device("cpu"))
    inverter = build_inverter(spec, setup)
    batch = inverter.invert(task.targets(0, 64))
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from shared.specs import (
    DeepInversionSynthesis,
    DFADSynthesis,
    FastMetaSynthesis,
    FastSynthesis,
    RecoverSynthesis,
    SynthesisBase,
)
from synth_service.inversion.base import Inverter
from synth_service.inversion.deepinversion import DeepInversionInverter
from synth_service.inversion.dfad import DFADInverter
from synth_service.inversion.fast import FastInverter
from synth_service.inversion.fast_meta import FastMetaInverter
from synth_service.inversion.objective import SyntheticBatch
from synth_service.inversion.recover import RecoverInverter
from synth_service.inversion.terms import Forward, LossTerm, Setup

__all__ = ["INVERTERS", "Forward", "Inverter", "LossTerm", "Setup", "SyntheticBatch", "build_inverter"]

INVERTERS: Final[Mapping[type[SynthesisBase], type[Inverter[Any]]]] = {
    FastMetaSynthesis: FastMetaInverter,
    FastSynthesis: FastInverter,
    DeepInversionSynthesis: DeepInversionInverter,
    RecoverSynthesis: RecoverInverter,
    DFADSynthesis: DFADInverter,
}
"""The class that inverts with each of our specs; another package's spec names its own in ``inverter``."""


def build_inverter(spec: SynthesisBase, setup: Setup) -> Inverter[Any]:
    """The inverter that a spec describes.

    Args:
        spec: settings; its type decides the method.
        setup: what is inverted. The teacher has to be on the device already.

    Raises:
        UserError: ``teacher_has_no_batchnorm`` or ``augmentation_does_not_fit``.
        LookupError: no inverter belongs to the spec.
    """
    inverter = INVERTERS.get(type(spec))
    if inverter is None:
        if not spec.inverter:
            raise LookupError(f"{type(spec).__name__} names no inverter, and INVERTERS has none for it")
        module, _, name = spec.inverter.partition(":")
        inverter = getattr(importlib.import_module(module), name)
    return inverter(spec, setup)
