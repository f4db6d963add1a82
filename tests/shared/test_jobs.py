import json
import re
from typing import Any

import pytest

from shared.jobs import (
    JobRecord,
    Progress,
    Role,
    State,
    Task,
    new_job_id,
    record_from_fields,
    task_totals,
    tasks_of,
)
from shared.specs import JobSpec
from tests.waiting import wait_until


def spec(partitions: int = 1, images: int = 10, **parts: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "job",
            "teacher": {"arch": "resnet20", "num_classes": 10, "checkpoint": "teacher.safetensors"},
            "student": {"arch": "resnet8"},
            "synthesis": {"num_images": images, "batch_size": 4, "partitions": partitions},
            "distillation": {"steps": 7, "warmup_batches": 0},
        }
        | parts
    )


def fields(*states: State, job: State = State.RUNNING, **more: str) -> dict[str, str]:
    """Those of a job with one synthesis task for each state."""
    tasks = [Task(Role.SYNTHESIS, partition) for partition in range(len(states))]
    described = {
        "id": "job-1",
        "name": "job",
        "metadata": "{}",
        "state": job,
        "created_at": "1.5",
        "spec": "{}",
        "tasks": json.dumps([str(task) for task in tasks]),
    }
    for task, state in zip(tasks, states, strict=True):
        described[f"{task}:state"] = state
    return described | more


def test_ids_are_unique_and_sort_by_creation() -> None:
    first = new_job_id()
    later = wait_until(lambda: (made := new_job_id())[:16] != first[:16] and made)
    assert later > first
    assert re.fullmatch(r"job-[0-9a-f]{20}", first)
    assert len({new_job_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("task", [Task(Role.SYNTHESIS, 0), Task(Role.SYNTHESIS, 1023), Task(Role.DISTILLATION)])
def test_a_task_survives_being_written_down(task: Task) -> None:
    assert Task.parse(str(task)) == task


def test_the_tasks_of_a_job_are_its_partitions_and_one_distillation() -> None:
    assert [str(task) for task in tasks_of(spec(2))] == ["synthesis:0", "synthesis:1", "distillation:0"]
    assert [str(task) for task in tasks_of(spec(distillation=None, student=None))] == ["synthesis:0"]
    existing = JobSpec.model_validate(
        spec().model_dump(exclude={"synthesis"}) | {"shards": "set.tar", "distillation": {"steps": 3}}
    )
    assert task_totals(existing) == {Task(Role.DISTILLATION): 3}


@pytest.mark.parametrize("partitions", [1, 2, 3, 7, 10])
def test_partitions_share_all_images_evenly(partitions: int) -> None:
    totals = task_totals(spec(partitions))
    assert totals.pop(Task(Role.DISTILLATION)) == 7
    assert sum(totals.values()) == 10
    assert max(totals.values()) - min(totals.values()) <= 1


def test_progress_derives_percentage_and_remaining_time() -> None:
    assert Progress.of(25, 100, 10.0).model_dump() == {
        "done": 25, "total": 100, "percent": 25.0, "rate": 10.0, "eta_seconds": 7.5,
    }  # fmt: skip
    assert Progress.of(100, 100, 10.0).eta_seconds is None
    assert Progress.of(5, 100, None).eta_seconds is None
    assert Progress.of(0, 0, None).percent == 0
    assert Progress.of(12, 10, 1.0).percent == 100
    assert Progress.of(5, 10, 0.0).rate is None
    assert Progress.of(999_999, 1_000_000, None).percent < 100


def test_only_ends_are_final() -> None:
    assert {state for state in State if state.is_final} == {State.SUCCEEDED, State.FAILED, State.CANCELLED}


Q, R, S, F, C = State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED


@pytest.mark.parametrize(
    ("partitions", "stage"),
    [
        ([Q, Q], Q),
        ([Q, R], R),
        ([R, S], R),
        ([S, Q], R),
        ([S, S], S),
        ([S, F], F),
        ([C, F, S], F),
        ([C, C], C),
        ([C, S], C),
        ([C, R], R),
    ],
)
def test_the_synthesis_stage_sums_up_its_partitions(partitions: list[State], stage: State) -> None:
    record = record_from_fields(fields(*partitions))
    assert record.stages.synthesis is not None
    assert record.stages.synthesis.state is stage
    assert [each.state for each in record.stages.synthesis.partitions] == partitions


def test_progress_and_rates_of_partitions_add_up() -> None:
    stage = record_from_fields(
        fields(
            R,
            R,
            **{  # type: ignore[arg-type]  # mypy takes a dict of str for `job`, too
                "synthesis:0:done": "10", "synthesis:0:total": "50", "synthesis:0:rate": "4.5",
                "synthesis:1:done": "30", "synthesis:1:total": "50", "synthesis:1:rate": "0.5",
                "synthesis:0:worker": "a", "synthesis:1:worker": "b",
                "synthesis:0:attempt": "1", "synthesis:1:attempt": "3",
                "synthesis:0:heartbeat_at": "7", "synthesis:1:heartbeat_at": "8",
                "synthesis:0:started_at": "2", "synthesis:1:started_at": "3",
                "synthesis:0:finished_at": "9",
                "synthesis:0:images": "8", "synthesis:1:images": "28", "shards": "9",
            },
        )
    ).stages.synthesis  # fmt: skip
    assert stage is not None
    assert stage.progress == Progress.of(40, 100, 5.0)
    assert (stage.worker, stage.attempt, stage.images, stage.shards) == ("a, b", 3, 36, 9)
    assert (stage.heartbeat_at, stage.started_at, stage.finished_at) == (8, 2, None)


def test_a_stage_that_a_job_has_not_is_null() -> None:
    assert record_from_fields(fields(Q)).stages.distillation is None
    only = record_from_fields(
        fields() | {"tasks": '["distillation:0"]', "shards_consumed": "3", "student_version": "2"}
    )
    assert only.stages.synthesis is None
    assert only.stages.distillation is not None
    assert (only.stages.distillation.shards_consumed, only.stages.distillation.student_version) == (3, 2)


def test_errors_and_results_are_read_back() -> None:
    error = {"code": "checkpoint_not_found", "message": "copy it there", "stage": "synthesis"}
    measured = {"step": 5, "student_top1": 0.5, "teacher_top1": 0.9, "agreement": 0.6}
    record = record_from_fields(
        fields(
            F,
            job=F,
            error=json.dumps(error),
            measurement=json.dumps(measured),
            result='{"images": 3}',
            finished_at="3.25",
            **{"synthesis:0:error": json.dumps(error)},
        )
    )
    assert record.error is not None
    assert record.error.model_dump() == error
    assert record.stages.synthesis is not None
    assert record.stages.synthesis.error == record.error
    assert record.measurement is not None
    # As it was written before a measurement told all its metrics under one name.
    metrics = {name: value for name, value in measured.items() if name != "step"}
    assert record.measurement.model_dump() == {**measured, "metrics": metrics}
    assert (record.result, record.finished_at) == ({"images": 3}, 3.25)


def test_a_record_and_its_spec_survive_json() -> None:
    described = spec(3)
    stored = fields(Q) | {"spec": described.model_dump_json()}
    record = record_from_fields(stored)
    assert record.parsed_spec() == described
    assert JobRecord.model_validate_json(record.model_dump_json()) == record
