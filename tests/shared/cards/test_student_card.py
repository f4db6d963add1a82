"""The model card is true, and strangers' names stay names in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from shared.cards.student_card import student_card
from shared.jobs import JobRecord, Measurement, Stages, State
from shared.networks.building import build_network
from shared.networks.weights import save_checkpoint
from shared.specs import InputSpec, JobSpec, StudentSpec


def finished(**changes: Any) -> JobRecord:
    fields = {
        "name": "digits",
        "teacher": {"arch": "resnet20", "num_classes": 7, "checkpoint": "t.pt", "input": {"channels": 1}},
        "student": {"arch": "resnet8"},
        "synthesis": {"num_images": 8, "batch_size": 4},
        "distillation": {"steps": 1200, "warmup_batches": 0},
        **changes,
    }
    spec = JobSpec.model_validate(fields).model_dump(mode="json")
    return JobRecord(
        id="job-1",
        state=State.SUCCEEDED,
        created_at=1,
        stages=Stages(),
        spec=spec,
        measurement=Measurement.of(1200, {"student_top1": 0.9125, "agreement": 0.5}),
    )


def test_the_front_matter_is_what_the_hub_reads() -> None:
    data = ModelCard(student_card(finished())).data
    assert data.to_dict() == {
        "library_name": "fast-dfkd",
        "pipeline_tag": "image-classification",
        "tags": ["data-free-knowledge-distillation", "knowledge-distillation", "safetensors"],
    }


def test_it_says_what_the_student_is_and_how_well_it_does() -> None:
    card = student_card(finished())
    assert "| Student | `resnet8`, 7 classes, 1,200 steps |" in card
    assert "| Student top-1 | 0.9125 |" in card
    assert "Teacher top-1" not in card  # it was not measured


def test_the_code_that_it_shows_loads_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = build_network(StudentSpec(arch="resnet8"), num_classes=7, input=InputSpec(channels=1))
    save_checkpoint(student, tmp_path / "student.safetensors", {})
    images = torch.zeros(2, 1, 32, 32)
    torch.export.save(torch.export.export(torch.nn.Identity(), (images,)), tmp_path / "student.pt2")
    first, second = re.findall(r"```python\n(.*?)```", student_card(finished(), ["torch-export"]), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(first, names)
    assert torch.equal(names["network"].state_dict()["fc.weight"], student.state_dict()["fc.weight"])
    exec(second, names)
    assert torch.equal(names["network"](images), images)


def test_a_network_of_somebodys_own_says_that_its_code_runs() -> None:
    card = student_card(finished(student={"arch": "mine.networks:build", "kwargs": {"x": "</code>```"}}))
    assert 'allowed_factories=["mine.networks"]' in card
    assert "</code>" not in card
    assert "allowed_factories" not in student_card(finished(student={"arch": "torchvision:resnet18"}))


def test_a_name_stays_a_name_and_metadata_stays_with_the_client() -> None:
    card = student_card(finished(name="<script> *x* \u202e", metadata={"secret": "yes"}))
    assert "# &lt;script> \\*x\\* \\\\u202e" in card
    assert "secret" not in card
    with pytest.raises(ValueError, match="trained a student"):
        student_card(finished(student=None, distillation=None))
