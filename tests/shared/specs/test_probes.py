"""What short measurements come to for a whole job."""

from __future__ import annotations

from typing import Any

import pytest

from shared.specs.probes import Half, Probe, TimeEstimate, estimate_time, probe_key
from tests.specs import small_job


def probe(seconds: float, peak_bytes: int = 10**9) -> Probe:
    return Probe(seconds=seconds, measured=5, peak_bytes=peak_bytes, device="cpu")


def estimated(round_seconds: float = 36.0, step_seconds: float = 3.6, **changes: Any) -> TimeEstimate:
    return estimate_time(
        small_job(**changes),
        probe(round_seconds),
        probe(step_seconds),
        pool_memory_bytes=10**9,
        pool_disk_bytes=0,
        memory_bytes=4 * 10**9,
    )


def test_rounds_and_steps_add_up_to_hours() -> None:
    found = estimated()  # 4 rounds, 20 steps, half of them kept for the end
    assert found.synthesis_hours == pytest.approx(0.04)
    assert found.distillation_hours == pytest.approx(0.02)
    assert found.hours == pytest.approx(0.05)
    assert found.hours_on_one_machine == pytest.approx(0.06)
    assert found.warnings == []


def test_partitions_share_the_rounds_and_lockstep_takes_turns() -> None:
    found = estimated(synthesis={"partitions": 2})
    assert found.synthesis_hours == pytest.approx(0.02)
    assert found.hours_on_one_machine == pytest.approx(0.06)
    lockstep = {"pacing": "lockstep", "steps": None, "steps_per_batch": 5, "warmup_batches": 0}
    assert estimated(distillation=lockstep).hours == pytest.approx(0.06)


def test_the_pool_counts_to_the_memory_of_the_distiller() -> None:
    found = estimated()
    assert found.distillation_peak_bytes == 10**9 + 64 * 16 * 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"round_seconds": 1e5}, "fewer synthesis.steps or num_images, or more partitions"),
        ({"synthesis": {"num_images": 10**7}}, "smaller distillation.pool_capacity"),
    ],
)
def test_what_will_not_fit_is_said_with_what_to_do(changes: dict[str, Any], said: str) -> None:
    if "synthesis" in changes:
        changes["distillation"] = {"pool_capacity": 10**7}
    assert any(said in warning for warning in estimated(**changes).warnings)


def test_too_much_memory_names_the_batch_size() -> None:
    found = estimate_time(
        small_job(), probe(1, 5 * 10**9), probe(1), pool_memory_bytes=1, pool_disk_bytes=0, memory_bytes=4 * 10**9
    )
    assert [warning for warning in found.warnings if "synthesis takes 5.0 GB" in warning and "batch_size" in warning]


@pytest.mark.parametrize("half", ["synthesis", "distillation"])
def test_only_what_changes_the_time_of_a_unit_changes_the_key(half: Half) -> None:
    key = probe_key(small_job(), half, "machine")
    same = small_job(seed=0, synthesis={"num_images": 640}, distillation={"steps": 50})
    assert probe_key(same, half, "machine") == key
    assert probe_key(small_job(), half, "another") != key
    other = small_job(synthesis={"batch_size": 32}, distillation={"batch_size": 32})
    assert probe_key(other, half, "machine") != key


def test_halves_have_keys_of_their_own() -> None:
    assert probe_key(small_job(), "synthesis", "m") != probe_key(small_job(), "distillation", "m")
