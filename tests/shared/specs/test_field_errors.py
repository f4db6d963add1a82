"""What is wrong with a job, in its writer's words."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.specs import JobSpec
from shared.specs.field_errors import described, field_path

TEACHER = {"arch": "resnet8", "checkpoint": "teacher.pt", "num_classes": 10}


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"teacher": TEACHER, "student": {"arch": "resnet8"}, **fields})
    return dict(map(described, caught.value.errors()))


def test_field_paths_join_where_they_overlap() -> None:
    assert field_path(("body", "teacher", "input"), "input.mean") == "teacher.input.mean"
    assert field_path(("body", "synthesis", "fast", "steps")) == "synthesis.steps"
    assert field_path(("body",), "distillation.steps") == "distillation.steps"
    assert field_path(("query", "limit")) == "limit"
    assert field_path(("body",)) == ""


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"synthesis": {"num_image": 3}}, "synthesis.num_image", "unknown field num_image; did you mean num_images?"),
        ({"num_images": 3}, "num_images", "unknown field num_images; did you mean synthesis.num_images?"),
        ({"teacher": {**TEACHER, "classes": 3}}, "teacher.classes", "unknown field classes; did you mean num_classes?"),
        ({"synthesis": {"batch_size": 1}}, "synthesis.batch_size", "must be at least 2; it is 1"),
        ({"synthesis": {"steps": "many"}}, "synthesis.steps", "must be a whole number; it is 'many'"),
        ({"teacher": None}, "teacher", "must be a mapping of fields; it is null"),
        ({"distillation": {"pacing": "fast"}}, "distillation.pacing", "must be 'free' or 'lockstep'; it is 'fast'"),
        ({"seed": "x" * 100}, "seed", f"must be a whole number; it is '{'x' * 59}…"),
        (
            {"student": {"arch": "mobilenet_v3_small"}},
            "student.arch",
            "`mobilenet_v3_small` is not a known architecture; did you mean `torchvision:mobilenet_v3_small`?; "
            "GET /architectures lists them",
        ),
    ],
)
def test_a_fault_names_the_field_what_it_is_and_the_remedy(fields: dict[str, Any], path: str, message: str) -> None:
    assert faults(**fields) == {path: message}


def test_a_field_like_no_other_brings_the_list() -> None:
    assert faults(evaluation={"shards": "a.tar", "zzz": 1}) == {
        "evaluation.zzz": "unknown field zzz; the fields here are batch_size, every_steps, shards"
    }


def test_what_is_missing_is_required() -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({})
    assert dict(map(described, caught.value.errors()))["teacher"] == "is required"
