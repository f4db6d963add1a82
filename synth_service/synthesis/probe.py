"""A few real rounds of a job's synthesis, to know how long one takes: ``python -m synth_service.synthesis.probe``.

Reads the job as JSON from stdin. Weights are left as they are initialized: they do not change how long a round takes.
"""

from __future__ import annotations

import torch

from shared.networks.building import build_network_of
from shared.settings import Settings
from shared.specs import JobSpec
from shared.tasks.base import build_task
from shared.worker.probing import Enough, Stopwatch, answer_probe
from synth_service.inversion import Setup, build_inverter


def measure_rounds(spec: JobSpec, device: torch.device, rounds: Stopwatch, steps: Stopwatch) -> tuple[float, int]:
    """Seconds of a round, and how many rounds (or, of a long one, steps) were measured.

    Args:
        spec: with a synthesis.
        device: where to compute.
        rounds: times whole rounds.
        steps: times the steps of the first ones, and ends a round that would take too long.
    """
    assert spec.synthesis is not None
    allowed = Settings().allowed_factories
    task = build_task(spec.teacher.task, spec.teacher.num_classes)

    teacher = build_network_of(spec, spec.teacher, allowed).to(device)
    setup = Setup(teacher, task, spec.teacher.input, spec.seed, device, spec.precision)
    inverter = build_inverter(spec.synthesis, setup)
    if spec.student is not None and spec.distillation is not None and spec.synthesis.adversarial > 0:
        inverter.use_student(build_network_of(spec, spec.student, allowed).to(device).eval())
    targets = task.targets(0, spec.synthesis.batch_size)

    def lap() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # a step that was only launched has taken no time yet
        steps.lap()

    try:
        while True:
            inverter.invert(targets, lap)
            rounds.lap()
    except Enough:
        pass
    if rounds.laps:
        return rounds.seconds, len(rounds.laps)
    # Not even two rounds: the steps of one make up nearly all of it.
    return steps.seconds * spec.synthesis.total_steps, len(steps.laps)


def main() -> None:
    """Answers on stdout."""
    answer_probe(lambda spec, device: measure_rounds(spec, device, Stopwatch(), Stopwatch()))


if __name__ == "__main__":
    main()
