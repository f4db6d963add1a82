"""The jobs that run under faults: digits, cut down to seconds of work, in every shape a job can have."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from tests.e2e.service import DIGITS, SCENES


def _digits() -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((DIGITS / "job.yaml").read_text())
    fields["synthesis"] |= {
        "num_images": 1024,
        "preset": "fast-2",
        "batch_size": 64,
        "generator_width": 16,
        "max_backlog": 6,
    }
    fields["distillation"] |= {"steps": 360, "batch_size": 64, "warmup_batches": 4, "snapshot_every_steps": 20}
    fields["evaluation"] |= {"every_steps": 100}
    return fields


def _free() -> dict[str, Any]:
    fields = _digits()
    fields["distillation"] |= {"steps": 900, "full_pool_share": 0.7}
    return fields


def _partitioned() -> dict[str, Any]:
    fields = _free()
    fields["synthesis"]["partitions"] = 3
    return fields


def _lockstep() -> dict[str, Any]:
    fields = _digits()
    del fields["distillation"]["steps"], fields["distillation"]["full_pool_share"]
    fields["distillation"] |= {"pacing": "lockstep", "steps_per_batch": 30}
    return fields


def _images_only() -> dict[str, Any]:
    fields = _digits()
    fields["synthesis"]["partitions"] = 2
    return {**fields, "student": None, "distillation": None, "evaluation": None}


def _segmentation() -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((SCENES / "job.yaml").read_text())
    fields["synthesis"] |= {"num_images": 256, "batch_size": 16, "generator_width": 4, "steps": 2}
    fields["student"] = {"arch": "deeplab", "kwargs": {"width": 4}}
    fields["distillation"] |= {"steps": 120, "batch_size": 8, "warmup_batches": 2, "snapshot_every_steps": 20}
    fields["evaluation"] |= {"every_steps": 60}
    return fields


SHAPES = {
    "free": _free,
    "partitioned": _partitioned,
    "lockstep": _lockstep,
    "images_only": _images_only,
    "segmentation": _segmentation,
}


def job_fields(shape: str, seed: int) -> dict[str, Any]:
    """What a client would post."""
    return {**copy.deepcopy(SHAPES[shape]()), "name": shape, "seed": seed}
