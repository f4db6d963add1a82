"""What the version at 25f874a left is still read: job specification, checkpoints of both halves, a shard.

The files beside this one were written by that version for the small networks below.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distiller.trainer import Trainer
from shared.jobs import Measurement
from shared.shards.format import read_shard
from shared.shards.manifest import ShardManifest
from shared.specs import AugmentationSpec, DistillationSpec, FastMetaSynthesis, InputSpec, JobSpec, earlier
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter

FOLDER = Path(__file__).parent
CPU = torch.device("cpu")
INPUT = InputSpec(channels=1, height=8, width=8)
TASK = build_task("classification", 3)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


def state_of(name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO((FOLDER / name).read_bytes()), weights_only=True)
    return state


def test_a_stored_job_is_understood_and_means_what_it_meant() -> None:
    stored = json.loads((FOLDER / "job-spec.json").read_text())
    job = JobSpec.model_validate(earlier.complete(stored))
    assert job.teacher.task == "classification"
    assert job.distillation is not None
    assert job.distillation.loss == "kl"
    assert job.distillation.max_gradient_norm is None
    assert isinstance(job.synthesis, FastMetaSynthesis)
    assert job.synthesis.bn_distance == "norm"
    assert_holds(job.model_dump(mode="json"), stored)


def assert_holds(resolved: dict[str, Any], stored: dict[str, Any]) -> None:
    """Every field that was stored has its value still."""
    for name, value in stored.items():
        if isinstance(value, dict):
            assert_holds(resolved[name], value)
        else:
            assert resolved[name] == value, name


def test_a_synthesis_checkpoint_continues() -> None:
    spec = FastMetaSynthesis(num_images=16, batch_size=4, steps=2, latent_dim=2, generator_width=2)
    inverter = build_inverter(spec, Setup(network(), TASK, INPUT, seed=0, device=CPU))
    state = state_of("synthesis-state.pt")
    inverter.load_state_dict(state)
    assert inverter.rounds == 2
    again = inverter.state_dict()
    assert torch.equal(again["bn_average"], state["bn_average"])
    assert all(torch.equal(again["generator"][name], tensor) for name, tensor in state["generator"].items())
    assert inverter.invert(TASK.targets(8, 4)).images.shape == (4, 1, 8, 8)


def test_a_distillation_checkpoint_continues() -> None:
    spec = DistillationSpec(steps=8, batch_size=4, augmentation=AugmentationSpec(crop_padding=1))
    trainer = Trainer(spec, network(), network(), task=TASK, input=INPUT, seed=0, device=CPU)
    state = state_of("trainer-state.pt")
    trainer.load_state_dict(state)
    assert trainer.step_count == 3
    weights = trainer.student.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state["student"].items())
    trainer.step(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert trainer.step_count == 4


def test_a_shard_and_its_manifest_are_whole() -> None:
    manifest = ShardManifest.model_validate_json((FOLDER / "job-earlier-00-000000-01.json").read_text())
    images, targets = read_shard(FOLDER / manifest.name, manifest)
    assert images.ravel().tolist() == list(range(128))
    assert targets.tolist() == [0, 2]


def test_a_measurement_from_before_there_were_other_tasks_tells_its_metrics() -> None:
    measured = Measurement.model_validate({"step": 5, "student_top1": 0.5, "teacher_top1": 0.9, "agreement": 0.6})
    assert measured.metrics == {"student_top1": 0.5, "teacher_top1": 0.9, "agreement": 0.6}
