"""The digits example as benchmarks use it: its job file with changes, its networks, its held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.records import REPOSITORY
from distiller.evaluation import Evaluator
from shared import seeds
from shared.networks.building import build_network
from shared.networks.weights import load_checkpoint
from shared.shards.reader import iter_samples
from shared.specs import JobSpec
from shared.tasks.base import Task, build_task

EXAMPLES = REPOSITORY / "examples"


def digits_fields(**changes: Mapping[str, Any] | int) -> dict[str, Any]:
    """The job file's fields. A mapping changes some fields of a part; ``None`` in it removes one."""
    fields: dict[str, Any] = yaml.safe_load((EXAMPLES / "digits" / "job.yaml").read_text(encoding="utf-8"))
    for name, change in changes.items():
        fields[name] = {**fields[name], **change} if isinstance(change, Mapping) else change
    return fields


def load_networks(job: JobSpec, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Teacher with its weights, and the student as the job's seed initializes it."""
    assert job.student is not None
    classes, shape = job.teacher.num_classes, job.teacher.input
    teacher = build_network(job.teacher, num_classes=classes, input=shape)
    load_checkpoint(teacher, EXAMPLES / job.teacher.checkpoint, field="teacher.checkpoint")
    with seeds.seeded_globally(job.seed, seeds.STUDENT):
        student = build_network(job.student, num_classes=classes, input=shape)
    return teacher.to(device), student.to(device)


def task_of(job: JobSpec) -> Task:
    """What the job's networks do."""
    return build_task(job.teacher.task, job.teacher.num_classes)


def build_evaluator(job: JobSpec, teacher: nn.Module, device: torch.device) -> Evaluator:
    """On the 450 digits that nothing was trained on."""
    assert job.evaluation is not None
    shape = job.teacher.input.shape
    task = task_of(job)
    return Evaluator(
        iter_samples([EXAMPLES / job.evaluation.shards], shape, labels=task.labels, require_labels=True),
        teacher,
        task=task,
        input=job.teacher.input,
        batch_size=job.evaluation.batch_size,
        device=device,
    )
