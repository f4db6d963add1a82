"""A smoke test of the decoupling benchmark: one small job in a service of its own."""

import argparse

import pytest

from benchmarks import decoupling
from benchmarks.decoupling import WAYS, conclude, describe, job_fields, measure_cell, staleness
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec

OPTIONS = argparse.Namespace(
    batches=3, steps_per_batch=2, seeds=1, threads=2, device="cpu", quick=True, fresh=False, results=None, json=False
)


@pytest.mark.e2e
def test_a_job_is_measured_and_the_ways_are_compared() -> None:
    cell = measure_cell("free", 0, OPTIONS)

    assert cell["images"] == 3 * 128
    assert cell["kd_steps"] == 4
    assert 0 < cell["wall_seconds"] < decoupling.JOB_SECONDS
    assert cell["staleness"]["shards"] == 3
    result = conclude({way: [cell] for way in WAYS}, OPTIONS)
    assert result["free_against"]["lockstep"]["time_saved_share"] == 0
    assert "lockstep, all threads" in describe(result)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_the_same_images_and_steps(way: str) -> None:
    job = JobSpec.model_validate(job_fields(way, 7, OPTIONS))

    assert job.seed == 7
    assert job.synthesis is not None
    assert job.synthesis.num_images == 384
    assert job.distillation is not None
    assert job.distillation.steps == 4
    assert job.distillation.pacing == way.split(",")[0]


def shard(index: int, *, created_at: float, student_version: int) -> ShardManifest:
    return ShardManifest(
        name=f"job-00-{index:06d}-01.tar",
        job="job",
        partition=0,
        index=index,
        attempt=1,
        images=1,
        bytes=1,
        sha256="0" * 64,
        class_counts={0: 1},
        first_image=index,
        student_version=student_version,
        channels=1,
        height=16,
        width=16,
        image_format="png",
        created_at=created_at,
    )


def test_staleness_counts_the_steps_since_the_snapshot_where_there_was_one() -> None:
    steps = [(10.0, 0), (20.0, 100)]
    shards = [
        shard(0, created_at=11.0, student_version=0),
        shard(1, created_at=15.0, student_version=20),
        shard(2, created_at=18.0, student_version=70),
    ]

    found = staleness(shards, steps, in_lockstep=False)

    assert found == {
        "shards": 3,
        "shards_with_student": 2,
        "steps": {"median": 20.0, "min": 10.0, "max": 30.0, "count": 2},
        "mean_steps": 20.0,
    }
