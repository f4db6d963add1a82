"""A few real steps of a job's distillation, to know how long one takes: ``python -m distiller.probe``.

Reads the job as JSON from stdin. Weights and images do not change how long a step takes, so both are random.
"""

from __future__ import annotations

import torch

from distiller.trainer import Trainer
from shared.networks.building import build_network_of
from shared.settings import Settings
from shared.specs import JobSpec
from shared.tasks.base import build_task
from shared.worker.probing import Enough, Stopwatch, answer_probe


def measure_steps(spec: JobSpec, device: torch.device, steps: Stopwatch) -> tuple[float, int]:
    """Seconds of a step, and how many were measured.

    Args:
        spec: with a distillation.
        device: where to compute.
        steps: times the steps.
    """
    assert spec.distillation is not None
    assert spec.student is not None
    allowed = Settings().allowed_factories
    student, teacher = (build_network_of(spec, network, allowed).to(device) for network in (spec.student, spec.teacher))
    # Drawn images cost a step nothing, and choosing them, once in a job, would take as long as the probe may.
    distillation = spec.distillation.model_copy(update={"procedural_share": 0.0})
    trainer = Trainer(
        distillation,
        student,
        teacher,
        task=build_task(spec.teacher.task, spec.teacher.num_classes),
        input=spec.teacher.input,
        seed=spec.seed,
        device=device,
        precision=spec.precision,
    )
    shape = (spec.distillation.batch_size, *spec.teacher.input.shape)
    batch = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        while True:
            trainer.step(batch.to(device, non_blocking=True))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            steps.lap()
    except Enough:
        return steps.seconds, len(steps.laps)


def main() -> None:
    """Answers on stdout."""
    answer_probe(lambda spec, device: measure_steps(spec, device, Stopwatch()))


if __name__ == "__main__":
    main()
