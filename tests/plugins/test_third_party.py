"""An inversion method, a distillation loss and a task of another package, none of whose names is in our code.

The package is made here, with nothing but its own files and the entry points of its metadata, and used by a fresh
process, as after `pip install`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

PACKAGE = {
    "toy_dfkd/__init__.py": "",
    "toy_dfkd/light.py": '''
"""What the API may import: no torch."""
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from shared.specs import SynthesisBase
from shared.tasks import Metric, TaskDescription


class NoiseSynthesis(SynthesisBase):
    inverter: ClassVar[str] = "toy_dfkd.heavy:NoiseInverter"
    term_labels: ClassVar[Mapping[str, str]] = {"one_hot": "Target class", "brightness": "Brightness"}

    method: Literal["toy-noise"] = "toy-noise"
    brightness: float = Field(0.5, ge=0, le=10, description="Weight of the mean pixel.")


PARITY = TaskDescription(
    name="toy-parity",
    label="Parity",
    about="Whether a class is even.",
    implementation="toy_dfkd.heavy:Parity",
    labels="shared.tasks.labels:ClassNumbers",
    metrics=(
        Metric("student_parity", "Student parity", "Share of images whose parity is right."),
        Metric("teacher_parity", "Teacher parity", "The same of the teacher."),
        Metric("agreement", "Agreement", "Share of images on which both say the same."),
    ),
    headline="parity",
    made_from="parity network",
    category="image-classification",
    counted="images",
    card="`.cls` is the class.",
    grid_caption="Images",
    label_members=("cls",),
)
''',
    "toy_dfkd/heavy.py": '''
"""What workers import."""
import torch
from torch import nn

from distiller.kd_losses import KDLoss
from shared.tasks.base import Evaluation
from shared.tasks.classification import Classification, TopOneMeter
from synth_service.inversion import Inverter, LossTerm
from synth_service.inversion.objective import BestImages
from synth_service.inversion.terms import OneHot, weighted


class Brightness(LossTerm):
    name = "brightness"

    def __call__(self, forward):
        return forward.images.mean((1, 2, 3))


class NoiseInverter(Inverter):
    def terms(self):
        return weighted(OneHot(self.spec.one_hot, self.setup.task), Brightness(self.spec.brightness))

    def optimize(self, targets, random, check):
        check()
        best = BestImages(self.setup.task)
        images = torch.rand((len(targets), *self.input.shape), generator=random)
        best.add(images, self.objective(images, targets))
        return best

    def commit(self):
        pass


class Bent(KDLoss):
    def __init__(self, spec, task):
        super().__init__(spec, task)
        self.bend = nn.Parameter(torch.zeros(task.num_classes))

    def forward(self, student_logits, teacher_logits):
        return (student_logits + self.bend - teacher_logits).square().mean()


class Parity(Classification):
    def meter(self, device):
        return ParityMeter(device)


class ParityMeter(TopOneMeter):
    def add(self, student, teacher, labels):
        super().add(student % 2, teacher % 2, labels % 2)

    def result(self):
        found = super().result().metrics
        return Evaluation({name.replace("top1", "parity"): value for name, value in found.items()})
''',
    "toy_dfkd-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-dfkd\nVersion: 1.0\n",
    "toy_dfkd-1.0.dist-info/entry_points.txt": """
[fast_dfkd.inverters]
toy-noise = toy_dfkd.light:NoiseSynthesis
[fast_dfkd.kd_losses]
toy-bent = toy_dfkd.heavy:Bent
[fast_dfkd.tasks]
toy-parity = toy_dfkd.light:PARITY
""",
}

JOB = """
fields = {
    "teacher": {"arch": "resnet8", "checkpoint": "t", "num_classes": 4, "task": "toy-parity",
                "input": {"channels": 1, "height": 8, "width": 8}},
    "student": {"arch": "resnet8"},
    "synthesis": {"method": "toy-noise", "num_images": 16, "batch_size": 8},
    "distillation": {"loss": "toy-bent", "steps": 3, "batch_size": 8, "warmup_batches": 0,
                     "augmentation": {"crop_padding": 0}},
}
"""

LIGHT = """
import sys
from shared.specs import JobSpec
job = JobSpec.model_validate(fields)
assert type(job.synthesis).__name__ == "NoiseSynthesis"
assert JobSpec.model_validate_json(job.model_dump_json()) == job
assert "toy-noise" in str(JobSpec.model_json_schema())

from synth_service.api.dashboard.charts import charts_of
from shared.jobs import DistillationStage, JobRecord, Stages, SynthesisStage
stages = Stages(synthesis=SynthesisStage(), distillation=DistillationStage())
fields["evaluation"] = {"shards": "x.tar"}
spec = JobSpec.model_validate(fields).model_dump(mode="json")
charts = {chart.id: chart for chart in charts_of(
    JobRecord(id="job-1", state="running", created_at=0, stages=stages, spec=spec))}
assert [each.label for each in charts["inversion"].series] == ["Target class", "Brightness"]
assert [each.name for each in charts["accuracy"].series] == ["student_parity", "agreement"]
assert "torch" not in sys.modules, "the API must not import torch"
"""

HEAVY = """
import torch
from shared.specs import JobSpec
job = JobSpec.model_validate(fields)
from distiller.evaluation import Evaluator
from distiller.trainer import Trainer
from shared.networks.building import build_network
from shared.shards.reader import Samples
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter

task = build_task("toy-parity", 4)
teacher, student = (
    build_network(each, num_classes=4, task="toy-parity", input=job.teacher.input)
    for each in (job.teacher, job.student)
)
inverter = build_inverter(job.synthesis, Setup(teacher, task, job.teacher.input, seed=0, device=torch.device("cpu")))
batch = inverter.invert(task.targets(0, 8))
assert batch.losses.keys() == {"one_hot", "brightness"}, batch.losses

trainer = Trainer(job.distillation, student, teacher, task=task, input=job.teacher.input, seed=0,
                  device=torch.device("cpu"))
for _ in range(3):
    trainer.step(batch.images)
state = trainer.state_dict()
assert state["loss"]["bend"].abs().sum() > 0, "the loss's parameters are trained and saved"
other = Trainer(job.distillation, student, teacher, task=task, input=job.teacher.input, seed=0,
                device=torch.device("cpu"))
other.load_state_dict(state)
assert torch.equal(other.loss.bend, trainer.loss.bend)

samples = [Samples(batch.images.numpy(), batch.targets.numpy())]
evaluator = Evaluator(samples, teacher, task=task, input=job.teacher.input, batch_size=4, device=torch.device("cpu"))
assert evaluator.evaluate(student).metrics.keys() == {"student_parity", "teacher_parity", "agreement"}
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def run(code: str, installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{installed}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=installed, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_specs_and_pages_know_a_package_by_its_entry_points_without_torch(installed: Path) -> None:
    run(JOB + LIGHT, installed)


def test_workers_invert_distil_and_measure_with_a_packages_own_classes(installed: Path) -> None:
    run(JOB + HEAVY, installed)


@pytest.mark.parametrize("first", ["toy_dfkd.light", "toy_dfkd.heavy", "shared.specs.job"])
def test_the_order_of_imports_does_not_matter(installed: Path, first: str) -> None:
    check = "from shared.specs import METHODS\nassert METHODS['toy-noise'].__module__ == 'toy_dfkd.light'"
    run(f"import {first}\n{check}", installed)


def test_an_entry_point_that_leads_elsewhere_is_named(installed: Path) -> None:
    path = installed / "toy_dfkd-1.0.dist-info" / "entry_points.txt"
    path.write_text("[fast_dfkd.inverters]\nwrong = json:loads\n", encoding="utf-8")
    run(
        "try:\n    import shared.specs.methods\nexcept TypeError as error:\n"
        "    assert '`wrong`' in str(error) and 'json:loads' in str(error)\nelse:\n    raise SystemExit('accepted')",
        installed,
    )
