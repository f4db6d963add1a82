"""What a client writes to start a job, and what is stored of it. Nothing here imports torch."""

from shared.specs.augmentation import AugmentationSpec
from shared.specs.base import MAX_IMAGES, Spec, StoragePath, invalid
from shared.specs.distillation import DistillationSpec, EvaluationSpec, ExportFormat
from shared.specs.job import JobSpec, MetadataKey, MetadataValue
from shared.specs.networks import MAX_IMAGE_VALUES, InputSpec, NetworkSpec, StudentSpec, TeacherSpec
from shared.specs.synthesis import (
    MAX_PARTITIONS,
    SYNTHESIS_METHODS,
    DeepInversionSynthesis,
    FastMetaSynthesis,
    FastSynthesis,
    GeneratorSynthesis,
    SynthesisBase,
    SynthesisSpec,
)

__all__ = [
    "MAX_IMAGES",
    "MAX_IMAGE_VALUES",
    "MAX_PARTITIONS",
    "SYNTHESIS_METHODS",
    "AugmentationSpec",
    "DeepInversionSynthesis",
    "DistillationSpec",
    "EvaluationSpec",
    "ExportFormat",
    "FastMetaSynthesis",
    "FastSynthesis",
    "GeneratorSynthesis",
    "InputSpec",
    "JobSpec",
    "MetadataKey",
    "MetadataValue",
    "NetworkSpec",
    "Spec",
    "StoragePath",
    "StudentSpec",
    "SynthesisBase",
    "SynthesisSpec",
    "TeacherSpec",
    "invalid",
]
