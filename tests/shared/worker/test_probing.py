"""The stopwatch of the probes, by a clock that the test moves; and real probes of both halves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from distiller.probe import measure_steps
from shared.specs.probes import Probe
from shared.worker.probing import Enough, Stopwatch
from synth_service.synthesis.probe import measure_rounds
from tests.specs import small_job

CPU = torch.device("cpu")


class Clock:
    """Moves by ``tick`` seconds whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_the_first_unit_does_not_count_and_the_median_does() -> None:
    moments = iter([100.0, 101.0, 102.0, 110.0, 111.0])
    watch = Stopwatch(10.5, clock=lambda: next(moments))
    for _ in range(4):
        watch.lap()
    with pytest.raises(Enough):
        watch.lap()
    assert watch.laps == [1, 1, 8, 1]
    assert watch.seconds == 1


def test_slow_units_are_measured_three_times_whatever_they_take() -> None:
    watch = Stopwatch(1.0, clock=Clock(60.0))
    for _ in range(3):
        watch.lap()
    with pytest.raises(Enough):
        watch.lap()
    assert len(watch.laps) == 3


def test_short_rounds_are_measured_whole() -> None:
    """Two steps a round: of 7 readings of the steps' clock, ten seconds apart, six are in three rounds."""
    rounds = Stopwatch(1e9, clock=Clock(20.0))
    seconds, measured = measure_rounds(small_job(), CPU, rounds, Stopwatch(55.0, clock=Clock(10.0)))
    assert (seconds, measured) == (20.0, 2)


def test_a_round_that_takes_too_long_is_known_by_its_steps() -> None:
    spec = small_job(synthesis={"steps": 2000})
    seconds, measured = measure_rounds(spec, CPU, Stopwatch(), Stopwatch(2.5, clock=Clock(1.0)))
    assert (seconds, measured) == (2000.0, 3)


def test_steps_of_distillation_are_measured() -> None:
    assert measure_steps(small_job(), CPU, Stopwatch(2.5, clock=Clock(1.0))) == (1.0, 3)


@pytest.mark.parametrize("module", ["synth_service.synthesis.probe", "distiller.probe"])
def test_a_probe_answers_with_json_on_stdout(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module], input=small_job().model_dump_json().encode(), capture_output=True, check=True
    )
    probe = Probe.model_validate(json.loads(done.stdout.splitlines()[-1]))
    assert 0 < probe.seconds < 60
    assert probe.measured >= 1
    assert probe.peak_bytes > 100_000_000
