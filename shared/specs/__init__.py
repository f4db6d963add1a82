"""What a client writes to start a job, and what is stored of it. Nothing here imports torch.

Names are imported when they are first asked for: a package that adds a method imports ``SynthesisBase`` while the
job, which takes in that very package's method, is not complete yet.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.specs.augmentation import AugmentationSpec
    from shared.specs.base import MAX_IMAGES, Spec, StoragePath, invalid
    from shared.specs.distillation import DistillationSpec, EvaluationSpec, ExportFormat
    from shared.specs.job import JobSpec, MetadataKey, MetadataValue
    from shared.specs.methods import METHODS, SYNTHESIS_METHODS, SynthesisSpec
    from shared.specs.networks import MAX_IMAGE_VALUES, InputSpec, NetworkSpec, StudentSpec, TeacherSpec
    from shared.specs.synthesis import (
        MAX_PARTITIONS,
        DeepInversionSynthesis,
        DFADSynthesis,
        FastMetaSynthesis,
        FastSynthesis,
        GeneratorName,
        GeneratorSynthesis,
        RecoverSynthesis,
        SynthesisBase,
    )

_MODULES = {
    "augmentation": ("AugmentationSpec",),
    "base": ("MAX_IMAGES", "Spec", "StoragePath", "invalid"),
    "distillation": ("DistillationSpec", "EvaluationSpec", "ExportFormat"),
    "job": ("JobSpec", "MetadataKey", "MetadataValue"),
    "methods": ("METHODS", "SYNTHESIS_METHODS", "SynthesisSpec"),
    "networks": ("MAX_IMAGE_VALUES", "InputSpec", "NetworkSpec", "StudentSpec", "TeacherSpec"),
    "synthesis": (
        "MAX_PARTITIONS",
        "DFADSynthesis",
        "DeepInversionSynthesis",
        "GeneratorName",
        "FastMetaSynthesis",
        "FastSynthesis",
        "GeneratorSynthesis",
        "RecoverSynthesis",
        "SynthesisBase",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "MAX_IMAGES",
    "MAX_IMAGE_VALUES",
    "MAX_PARTITIONS",
    "METHODS",
    "SYNTHESIS_METHODS",
    "AugmentationSpec",
    "DFADSynthesis",
    "DeepInversionSynthesis",
    "DistillationSpec",
    "EvaluationSpec",
    "ExportFormat",
    "FastMetaSynthesis",
    "FastSynthesis",
    "GeneratorName",
    "GeneratorSynthesis",
    "InputSpec",
    "JobSpec",
    "MetadataKey",
    "MetadataValue",
    "NetworkSpec",
    "RecoverSynthesis",
    "Spec",
    "StoragePath",
    "StudentSpec",
    "SynthesisBase",
    "SynthesisSpec",
    "TeacherSpec",
    "invalid",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
