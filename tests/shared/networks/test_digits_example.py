"""The committed files of examples/digits are what its README and job say."""

from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import yaml

from shared.networks.building import build_network
from shared.networks.weights import load_checkpoint
from shared.shards.reader import iter_samples
from shared.specs import JobSpec, TeacherSpec

FOLDER = Path(__file__).parents[3] / "examples" / "digits"
HELD_OUT = 450


@pytest.fixture(scope="module")
def job() -> JobSpec:
    return JobSpec.model_validate(yaml.safe_load((FOLDER / "job.yaml").read_text(encoding="utf-8")))


def held_out(teacher: TeacherSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in [0, 1] (450, 1, 16, 16) and labels (450,)."""
    ((images, labels),) = iter_samples([FOLDER / "held-out.tar"], teacher.input.shape, require_labels=True)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels)


def test_the_job_is_valid_and_names_the_files_beside_it(job: JobSpec) -> None:
    assert job.evaluation is not None
    for path in (job.teacher.checkpoint, job.evaluation.shards):
        folder, _, name = path.partition("/")
        assert folder == "digits"
        assert (FOLDER / name).is_file()
    assert job.synthesis is not None
    assert job.synthesis.total_batches == 50


def test_the_held_out_digits_are_balanced_and_sane(job: JobSpec) -> None:
    images, labels = held_out(job.teacher)
    assert images.shape == (HELD_OUT, 1, 16, 16)
    counts = np.bincount(labels.numpy(), minlength=10)
    assert counts.min() >= 43
    assert counts.max() <= 46
    assert images.max() == 1
    # A zero is a ring: no ink at its centre. A one is a stroke through it.
    centre = images[:, 0, 6:10, 6:10].mean((1, 2))
    assert centre[labels == 0].mean() < 0.3 < 0.7 < centre[labels == 1].mean()


@torch.no_grad()
def test_the_teacher_reaches_the_accuracy_that_is_written_down(job: JobSpec) -> None:
    teacher = job.teacher
    network = build_network(teacher, num_classes=teacher.num_classes, input=teacher.input)
    load_checkpoint(network, FOLDER / "teacher.safetensors", field="teacher.checkpoint")
    pixels, labels = held_out(teacher)
    mean, std = torch.tensor(teacher.input.mean), torch.tensor(teacher.input.std)
    normalized = (pixels - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    correct = int((network.eval()(normalized).argmax(1) == labels).sum())
    assert correct >= 0.98 * HELD_OUT
    with safetensors.safe_open(FOLDER / "teacher.safetensors", framework="pt") as file:
        recorded = file.metadata()
    assert recorded["held_out_top1"] == f"{correct / HELD_OUT:.4f} of {HELD_OUT}"
    assert recorded["input"] == teacher.input.model_dump_json()
    assert f"{correct} of {HELD_OUT}" in (FOLDER / "README.md").read_text(encoding="utf-8")
