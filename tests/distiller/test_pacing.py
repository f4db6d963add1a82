"""How many steps the images so far allow."""

from __future__ import annotations

import pytest

from distiller.pacing import Free, Lockstep, pacing_of
from shared.specs import JobSpec
from tests.specs import job_fields, small_job


def lockstep_job(**distillation: object) -> JobSpec:
    fields = job_fields()
    fields["distillation"] = {"pacing": "lockstep", "steps_per_batch": 3, "batch_size": 16, "warmup_batches": 1}
    fields["distillation"] |= distillation
    return JobSpec.model_validate(fields)


def test_free_pacing_waits_for_a_warm_pool_and_holds_steps_back() -> None:
    pacing = pacing_of(small_job(distillation={"steps": 20, "warmup_batches": 2, "full_pool_share": 0.25}))

    assert isinstance(pacing, Free)
    assert [pacing.goal(images, False) for images in (0, 31, 32, 64)] == [0, 0, 15, 15]
    assert pacing.goal(64, True) == 20


def test_free_pacing_needs_one_whole_batch() -> None:
    pacing = pacing_of(small_job(distillation={"batch_size": 48, "warmup_batches": 1, "full_pool_share": 0.0}))

    assert [pacing.goal(images, False) for images in (47, 48)] == [0, 20]


def test_lockstep_trains_after_each_batch_from_the_warmup_on() -> None:
    pacing = pacing_of(lockstep_job())

    assert isinstance(pacing, Lockstep)
    assert [pacing.goal(images, False) for images in (0, 16, 17, 32, 48, 64)] == [0, 0, 3, 3, 6, 9]


@pytest.mark.parametrize("spec", [small_job(), lockstep_job()], ids=["free", "lockstep"])
def test_more_images_never_allow_fewer_steps(spec: JobSpec) -> None:
    pacing = pacing_of(spec)
    goals = [pacing.goal(images, False) for images in range(0, 65, 4)]
    assert spec.distillation is not None

    assert goals == sorted(goals)
    assert goals[-1] <= pacing.goal(64, True) == spec.distillation.steps
