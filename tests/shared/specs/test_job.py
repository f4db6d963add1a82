import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.specs import (
    DeepInversionSynthesis,
    FastMetaSynthesis,
    FastSynthesis,
    InputSpec,
    JobSpec,
    SynthesisBase,
)

TEACHER: dict[str, Any] = {"arch": "resnet20", "num_classes": 10, "checkpoint": "teacher.safetensors"}
MINIMAL: dict[str, Any] = {"teacher": TEACHER, "student": {"arch": "resnet8"}}


def parse(**parts: Any) -> JobSpec:
    return JobSpec.model_validate(MINIMAL | parts)


def refused(**parts: Any) -> list[str]:
    """Fields that validation blames, with what it says."""
    with pytest.raises(ValidationError) as error:
        parse(**parts)
    return [str(each.get("ctx", {}).get("field") or ".".join(map(str, each["loc"]))) for each in error.value.errors()]


def test_a_teacher_and_a_student_are_enough() -> None:
    spec = parse()
    assert isinstance(spec.synthesis, FastMetaSynthesis)
    assert spec.synthesis.preset == "fast-5"
    assert spec.synthesis.num_images == 220 * 256
    assert spec.distillation is not None
    assert spec.distillation.steps == 200 * 400  # the paper: 220 batches, of which 20 only fill the pool
    assert spec.teacher.input.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("fast-meta", FastMetaSynthesis), ("fast", FastSynthesis), ("deepinversion", DeepInversionSynthesis)],
)
def test_the_method_chooses_the_settings(method: str, kind: type[SynthesisBase]) -> None:
    assert type(parse(synthesis={"method": method}).synthesis) is kind


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"synthesis": {"preset": "fast-10", "num_images": 512, "batch_size": 8, "partitions": 3}},
        {"synthesis": {"method": "deepinversion"}, "distillation": None, "student": None},
        {"shards": "set-{000..009}.tar", "distillation": {"steps": 5}},
        {"distillation": {"pacing": "lockstep"}},
        {"evaluation": {"shards": "held-out.tar"}, "metadata": {"a": "b"}, "seed": 2**32 - 1},
        {"teacher": TEACHER | {"input": {"channels": 1, "height": 16, "width": 16, "mean": 0.5, "std": [0.25]}}},
    ],
)
def test_a_stored_spec_is_resolved_and_reads_back_as_it_is(parts: dict[str, Any]) -> None:
    spec = parse(**parts)
    stored = spec.model_dump_json()
    assert JobSpec.model_validate_json(stored) == spec
    assert JobSpec.model_validate_json(stored).model_dump_json() == stored


def test_what_was_resolved_is_written_out() -> None:
    stored = json.loads(parse(synthesis={"preset": "fast-2"}).model_dump_json())
    assert stored["synthesis"]["steps"] == 2
    assert stored["synthesis"]["generator_learning_rate"] == 5e-3
    assert stored["distillation"]["steps"] == 80_000
    assert stored["teacher"]["input"]["mean"] == [0.0, 0.0, 0.0]


def test_specs_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("part", ["teacher", "student", "synthesis", "distillation"])
def test_a_misspelt_field_is_refused_in_every_part(part: str) -> None:
    blamed = refused(**{part: {**MINIMAL.get(part, {}), "stepps": 1}})
    assert any(field.endswith("stepps") for field in blamed)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"shards": "x.tar", "synthesis": {}}, "shards"),
        ({"shards": "x.tar", "synthesis": {"method": "fast"}}, "shards"),
        ({"initial_shards": "x.tar", "shards": "y.tar", "distillation": {"steps": 1}}, "initial_shards"),
        ({"initial_shards": "x.tar", "distillation": None, "student": None}, "initial_shards"),
        ({"distillation": None}, "student"),
        ({"distillation": None, "student": None, "evaluation": {"shards": "x"}}, "evaluation"),
        ({"distillation": None, "student": None, "shards": "x.tar"}, "distillation"),
        ({"student": None}, "student"),
        ({"distillation": {"pacing": "lockstep", "steps": 3}}, "distillation.steps"),
        ({"shards": "x.tar", "distillation": {"pacing": "lockstep"}}, "distillation.pacing"),
        ({"synthesis": {"partitions": 2}, "distillation": {"pacing": "lockstep"}}, "synthesis.partitions"),
        ({"synthesis": {"num_images": 3, "partitions": 4}}, "synthesis.partitions"),
        ({"synthesis": {"num_images": 256}, "distillation": {"warmup_batches": 1}}, "distillation.warmup_batches"),
        ({"shards": "x.tar", "distillation": {"steps": 1, "warmup_batches": 1}}, "distillation.warmup_batches"),
        ({"distillation": {"learning_rate": 0.1, "final_learning_rate": 0.2}}, "distillation.final_learning_rate"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"metadata": {"": "x"}}, "metadata..[key]"),
        ({"teacher": TEACHER | {"arch": "resnet21"}}, "teacher.arch"),
        ({"teacher": TEACHER | {"num_classes": 1}}, "teacher.num_classes"),
        ({"teacher": TEACHER | {"checkpoint": ""}}, "teacher.checkpoint"),
        ({"shards": "x.tar"}, "distillation.steps"),
    ],
)
def test_parts_that_do_not_fit_blame_the_field_to_change(parts: dict[str, Any], field: str) -> None:
    assert refused(**parts) == [field]


@pytest.mark.parametrize("name", ["bn", "one_hot", "adversarial", "generator_learning_rate", "latent_learning_rate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_weights_and_rates_are_finite_and_not_negative(name: str, value: float) -> None:
    assert refused(synthesis={name: value}) == [f"synthesis.fast-meta.{name}"]


def test_an_unknown_architecture_comes_with_the_near_ones() -> None:
    with pytest.raises(ValidationError, match="did you mean `resnet20`"):
        parse(teacher=TEACHER | {"arch": "ResNet-20"})


def test_lockstep_resolves_the_steps_that_were_left_out() -> None:
    spec = parse(
        synthesis={"num_images": 100, "batch_size": 10},
        distillation={"pacing": "lockstep", "warmup_batches": 4, "steps_per_batch": 7},
    )
    assert spec.distillation is not None
    assert spec.distillation.steps == 6 * 7


def test_a_preset_brings_its_own_distillation_which_written_fields_win_over() -> None:
    spec = parse(synthesis={"preset": "fast-50-imagenet"}, distillation={"temperature": 2.0})
    assert spec.distillation is not None
    assert (spec.distillation.temperature, spec.distillation.batch_size) == (2.0, 100)


@pytest.mark.parametrize("source", [{}, {"shards": "somewhere", "distillation": {"steps": 5}}])
def test_a_task_has_defaults_of_its_own_which_written_fields_win_over(source: dict[str, Any]) -> None:
    teacher = {**TEACHER, "arch": "deeplab_small", "task": "semantic-segmentation"}
    maps: dict[str, Any] = {"teacher": teacher, "student": {"arch": "deeplab_tiny"}, **source}
    chosen = {**maps, "distillation": {**maps.get("distillation", {}), "procedural_share": 0.25}}

    for fields, expected in ((maps, 0.0), (chosen, 0.25)):
        distillation = parse(**fields).distillation
        assert distillation is not None
        assert distillation.procedural_share == expected
        assert (distillation.optimizer, distillation.learning_rate) == ("adamw", 0.01)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"learning_rate": 0.2}, ("sgd", 0.2)),
        ({"optimizer": "sgd"}, ("sgd", 0.1)),
        ({"optimizer": "adamw"}, ("adamw", 0.001)),
    ],
)
def test_a_written_optimizer_or_step_size_takes_none_of_the_tasks(
    written: dict[str, Any], expected: tuple[str, float]
) -> None:
    teacher = {**TEACHER, "arch": "deeplab_small", "task": "semantic-segmentation"}
    distillation = parse(teacher=teacher, student={"arch": "deeplab_tiny"}, distillation=written).distillation
    assert distillation is not None
    assert (distillation.optimizer, distillation.learning_rate) == expected


def test_calibration_needs_no_student() -> None:
    spec = JobSpec.model_validate({"teacher": TEACHER, "synthesis": {"preset": "calibration"}})
    assert spec.distillation is None
    assert spec.synthesis is not None
    assert spec.synthesis.num_images == 256
    with_student = parse(synthesis={"preset": "calibration", "num_images": 640})
    assert with_student.distillation is not None


def test_one_value_of_the_normalization_serves_every_channel() -> None:
    spec = InputSpec.model_validate({"channels": 3, "mean": 0.5, "std": [0.25]})
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.25,) * 3)
    assert InputSpec.model_validate({"channels": 1}).std == (1.0,)


@pytest.mark.parametrize(
    "written",
    [
        {"channels": 3, "mean": [0.1, 0.2]},
        {"std": 0},
        {"std": [1, 1, -1]},
        {"channels": 0},
        {"channels": 65},
        {"channels": 10**30, "mean": 0.5},
        {"channels": "three"},
        {"channels": None},
        {"channels": [3]},
        {"channels": 64, "height": 2048, "width": 2048},
        {"mean": None},
        {"mean": "gray"},
        {"mean": {"r": 1}},
        {"mean": [[0.5]]},
        {"std": float("nan")},
        {"height": 3},
    ],
)
def test_an_input_that_cannot_be_is_refused(written: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InputSpec.model_validate(written)


@given(images=st.integers(1, 5000), partitions=st.integers(1, 64), batch=st.integers(2, 300))
def test_partitions_and_batches_cover_all_images(images: int, partitions: int, batch: int) -> None:
    spec = FastSynthesis(num_images=images, partitions=min(partitions, images), batch_size=batch)
    shares = [spec.images_of_partition(partition) for partition in range(spec.partitions)]
    assert sum(shares) == images
    assert min(shares) >= 1
    assert spec.total_batches == sum(len(range(0, share, batch)) for share in shares)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    part=st.sampled_from(
        ["teacher", "student", "synthesis", "distillation", "evaluation", "shards", "seed", "metadata"]
    ),
    field=st.sampled_from(["arch", "input", "kwargs", "preset", "method", "augmentation", "steps", "partitions", ""]),
    value=json_values,
)
def test_whatever_a_client_writes_is_accepted_or_refused_but_never_crashes(part: str, field: str, value: Any) -> None:
    written: Any = {**MINIMAL.get(part, {}), field: value} if field else value
    with suppress(ValidationError):
        JobSpec.model_validate(MINIMAL | {part: written})


@pytest.mark.parametrize("kwargs", [{"a": "x" * 16_000}, {f"k{n}": n for n in range(2_000)}, {"a": [0] * 9_000}])
def test_arguments_of_a_network_have_a_limit(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="16,000"):
        parse(student={"arch": "resnet20", "kwargs": kwargs})


def test_external_is_short_for_no_distillation_that_another_program_stands_for() -> None:
    spec = JobSpec.model_validate({"teacher": TEACHER, "distillation": "external"})
    assert (spec.distillation, spec.external) == (None, True)
    assert JobSpec.model_validate({"teacher": TEACHER, "external": True}) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({}, "student"),
        ({"student": None, "evaluation": {"shards": "held-out.tar"}}, "evaluation"),
        ({"student": None, "shards": "set-{000..009}.tar"}, "external"),
        ({"student": None, "initial_shards": "set-{000..009}.tar"}, "initial_shards"),
        ({"student": None, "external": False}, "external"),
        ({"distillation": {}, "external": True}, "external"),
        ({"student": None, "distillation": "extern"}, "distillation"),
    ],
)
def test_what_another_program_does_cannot_be_asked_of_us(parts: dict[str, Any], field: str) -> None:
    assert refused(**{"distillation": "external", **parts}) == [field]


def test_the_schema_lets_external_stand_for_distillation() -> None:
    assert {"const": "external", "type": "string"} in JobSpec.model_json_schema()["properties"]["distillation"]["anyOf"]
