"""The form against the specification: nothing is forgotten, and what is filled in means the same job."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from shared.specs import DeepInversionSynthesis, FastMetaSynthesis, FastSynthesis, JobSpec
from synth_service.api.dashboard.job_form import ESSENTIAL, form_sections, goal_of, shortest, with_code

DIGITS = Path(__file__).parents[4] / "examples" / "digits" / "job.yaml"


def digits() -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(DIGITS.read_text())
    return fields


def leaves(value: dict[str, Any], prefix: str = "") -> set[str]:
    """Paths of the values of a job that are no parts themselves."""
    found: set[str] = set()
    for name, each in value.items():
        is_part = isinstance(each, dict) and name not in ("kwargs", "metadata")
        found |= leaves(each, f"{prefix}{name}.") if is_part else {prefix + name}
    return found


def fields() -> dict[str, Any]:
    return {each.path: each for section in form_sections() for each in section.fields}


def test_every_field_of_a_resolved_job_is_asked_for_once() -> None:
    job = digits() | {"metadata": {"a": "b"}}
    paths = [each.path for section in form_sections() for each in section.fields]
    assert len(paths) == len(set(paths))
    resolved = JobSpec.model_validate(job).model_dump(mode="json")
    assert leaves(resolved) <= set(paths)
    assert set(ESSENTIAL) <= set(paths)


@pytest.mark.parametrize("method", [FastMetaSynthesis, FastSynthesis, DeepInversionSynthesis])
def test_fields_of_a_method_show_for_it_with_its_defaults(method: type[BaseModel]) -> None:
    name = method.model_fields["method"].default
    own = {each.path for each in fields().values() if each.path.startswith("synthesis.")}
    shown = {path for path in own if not fields()[path].methods or name in fields()[path].methods}
    assert shown == {f"synthesis.{path}" for path in leaves(method().model_dump())}
    assert float(fields()["synthesis.steps"].defaults[name]) == method.model_fields["steps"].default


def test_only_what_has_no_default_is_required() -> None:
    required = {path for path, each in fields().items() if each.is_required}
    assert required == {"teacher.arch", "teacher.checkpoint", "teacher.num_classes", "student.arch"}


def test_limits_are_said_in_words() -> None:
    assert fields()["synthesis.num_images"].limits == "1 to 100,000,000"
    assert fields()["distillation.learning_rate"].limits == "above 0, at most 100"
    assert fields()["distillation.momentum"].limits == "at least 0, below 1"


def test_a_job_fills_the_form() -> None:
    filled = {each.path: each.value for section in form_sections(digits()) for each in section.fields}
    assert filled["teacher.input.mean"] == "0.305"
    assert filled["synthesis.reset_first_layer_at_batch"] == "none"
    assert filled["synthesis.augmentation.horizontal_flip"] == "false"
    assert filled["synthesis.adversarial"] == ""
    assert filled["evaluation.shards"] == "digits/held-out.tar"


def test_the_shortest_form_of_a_resolved_job_is_what_was_written() -> None:
    written = digits()
    resolved = JobSpec.model_validate(written).model_dump(mode="json")
    del written["seed"]  # 0, as without
    assert shortest(resolved) == written


@pytest.mark.parametrize(
    "changes",
    [
        {"synthesis": {"method": "deepinversion", "num_images": 600}},
        {"synthesis": {"method": "fast", "num_images": 6000, "bn": 3}},
        {"synthesis": {"preset": "fast-50-imagenet", "num_images": 6000}},
        {"distillation": None, "student": None, "evaluation": None},
        {"distillation": "external", "student": None, "evaluation": None},
        {"synthesis": None, "shards": "sets/a.tar", "distillation": {"steps": 5}},
        {"distillation": {"pacing": "lockstep"}},
    ],
)
def test_shortening_keeps_the_meaning(changes: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(digits() | changes)
    short = shortest(spec.model_dump(mode="json"))
    assert JobSpec.model_validate(short) == spec
    assert shortest(short) == short
    assert len(leaves(short)) < 0.6 * len(leaves(spec.model_dump(mode="json")))


def test_a_job_of_another_version_is_shown_as_it_is() -> None:
    job = digits() | {"no_longer_known": 1}
    assert shortest(job) == job
    assert any(each.value for section in form_sections(job) for each in section.fields)


def test_arguments_of_a_network_are_one_field_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    job = digits()
    job["student"] = {**job["student"], "kwargs": {f"argument_{n}": n for n in range(900)}}
    calls: list[object] = []
    validate = JobSpec.model_validate

    def counted(written: object) -> JobSpec:
        calls.append(written)
        return validate(written)

    monkeypatch.setattr(JobSpec, "model_validate", counted)
    assert shortest(job)["student"]["kwargs"] == job["student"]["kwargs"]
    assert len(calls) < 100


def test_goals() -> None:
    assert goal_of({}) == "both"
    assert goal_of({"distillation": None}) == "dataset"
    assert goal_of({"external": True}) == "dataset"
    assert goal_of({"shards": "a.tar"}) == "student"


def test_descriptions_are_escaped() -> None:
    assert with_code("a < `b & c`") == "a &lt; <code>b &amp; c</code>"
