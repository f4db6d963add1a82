"""Job specifications for tests: small, valid, and with whatever a test wants changed."""

from typing import Any

from shared.specs import JobSpec


def job_fields(**changes: Any) -> dict[str, Any]:
    """What a client would write for a small job; ``synthesis={…}`` and the like are merged in."""
    fields: dict[str, Any] = {
        "name": "small",
        "teacher": {
            "arch": "resnet8",
            "num_classes": 10,
            "checkpoint": "teacher.safetensors",
            "input": {"channels": 1, "height": 16, "width": 16},
        },
        "student": {"arch": "resnet8"},
        "synthesis": {"preset": "fast-2", "num_images": 64, "batch_size": 16, "latent_dim": 8, "generator_width": 4},
        "distillation": {"steps": 20, "batch_size": 16, "warmup_batches": 1},
    }
    for name, value in changes.items():
        both_are_parts = isinstance(value, dict) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **value} if both_are_parts else value
    return fields


def small_job(**changes: Any) -> JobSpec:
    """A validated small job."""
    return JobSpec.model_validate(job_fields(**changes))
