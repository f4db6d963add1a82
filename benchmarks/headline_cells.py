"""One cell of the headline: a student distilled by one method with one seed, in this process.

Synthesis and distillation take turns, as in the paper: a round, then the KD steps that are due, then the
next round against the student as it is now. So every method has its adversarial term, DeepInversion the
adaptive one that its authors gave it. Only the rounds are timed as synthesis.

The KD budget is the same for all methods: the steps, batch size and schedule of the digits job. A tenth of
the rounds only fill the pool; then the job's share of the steps is spread evenly over the rounds, and the
rest (``full_pool_share``) follows once every image is there.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from torch import nn

from benchmarks.digits import build_evaluator, digits_fields, load_networks, task_of
from benchmarks.records import Record
from distiller.pool import ImagePool
from distiller.trainer import Trainer
from shared import seeds
from shared.specs import JobSpec
from shared.specs.precision import PrecisionName
from synth_service.inversion import Inverter, Setup, SyntheticBatch, build_inverter

WARMUP_SHARE = 0.1
CURVE_POINTS = 12


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all methods of a comparison share."""

    kd_steps: int
    kd_batch: int


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to make images.

    ``synthesis`` is merged into the digits job's. ``reuse`` is False where every batch gets a newly
    initialized generator, which the service does not offer since nobody would want it.
    """

    label: str
    images: int
    batch: int
    synthesis: dict[str, Any]
    reuse: bool = True

    @property
    def rounds(self) -> int:
        """Batches that it makes."""
        return math.ceil(self.images / self.batch)


def job_of(method: Method, budget: Budget, seed: int) -> JobSpec:
    """The digits job with this method's synthesis and the common budget."""
    synthesis = {"num_images": method.images, "batch_size": method.batch, **method.synthesis}
    if "method" not in synthesis or synthesis["method"] != "deepinversion":
        synthesis = {**digits_fields()["synthesis"], **synthesis}
    fields = digits_fields(seed=seed, distillation={"steps": budget.kd_steps, "batch_size": budget.kd_batch})
    fields["distillation"]["warmup_batches"] = warmup_rounds(method.rounds)
    return JobSpec.model_validate({**fields, "synthesis": synthesis})


def warmup_rounds(rounds: int) -> int:
    """Rounds before the first KD step; none where there is only one round."""
    return min(max(1, round(WARMUP_SHARE * rounds)), rounds - 1)


def steps_due(done: int, rounds: int, early_steps: int) -> int:
    """KD steps that are due after so many rounds."""
    warmup = warmup_rounds(rounds)
    return early_steps * max(0, done - warmup) // (rounds - warmup)


def measure_cell(
    method: Method, budget: Budget, seed: int, device: torch.device, precision: PrecisionName = "auto"
) -> Record:
    """Runs a cell.

    Returns:
        Accuracy and agreement on the held-out digits (the last student's, never the best one's), times, how
        the teacher sees the images, and the curve: [images, synthesis seconds, KD steps, top-1] along the run.
    """
    job = job_of(method, budget, seed).model_copy(update={"precision": precision})
    assert job.distillation is not None
    teacher, student = load_networks(job, device)
    evaluator = build_evaluator(job, teacher, device)
    trainer = Trainer(
        job.distillation,
        student,
        teacher,
        task=task_of(job),
        input=job.teacher.input,
        seed=seed,
        device=device,
        precision=job.precision,
    )
    sampling = seeds.generator(seed, seeds.SAMPLING)
    pool = ImagePool(method.images, job.teacher.input.shape, device)
    maker = BatchMaker(method, job, teacher, device)

    early_steps = round(budget.kd_steps * (1 - job.distillation.full_pool_share))
    synthesis_seconds = kd_seconds = 0.0
    hits = confidence = 0.0
    curve: list[tuple[int, float, int, float]] = []
    for done in range(1, method.rounds + 1):
        started = time.perf_counter()
        batch = maker.next()
        synthesis_seconds += time.perf_counter() - started
        pool.add(batch.images)
        hits += float((batch.described["teacher_top1"] == batch.targets).sum())
        confidence += float(batch.described["teacher_confidence"].sum())
        goal = budget.kd_steps if done == method.rounds else steps_due(done, method.rounds, early_steps)
        kd_seconds += train(trainer, pool, goal, budget.kd_batch, sampling)
        if trainer.step_count:
            maker.use_student(student)
        if done % math.ceil(method.rounds / CURVE_POINTS) == 0 or done == method.rounds:
            top1 = evaluator.evaluate(student).metrics["student_top1"]
            curve.append((pool.images_seen, round(synthesis_seconds, 3), trainer.step_count, round(top1, 5)))
    found = evaluator.evaluate(student).metrics
    images = pool.images_seen
    return {
        **{name: round(value, 5) for name, value in found.items()},
        "images": images,
        "synthesis_seconds": round(synthesis_seconds, 3),
        "seconds_per_image": round(synthesis_seconds / images, 6),
        "kd_steps": trainer.step_count,
        "kd_seconds": round(kd_seconds, 3),
        "teacher_hits_target": round(hits / images, 5),
        "teacher_confidence": round(confidence / images, 5),
        "last_losses": {term: round(value, 4) for term, value in batch.losses.items()},
        "curve": curve,
    }


def train(trainer: Trainer, pool: ImagePool, goal: int, batch_size: int, sampling: torch.Generator) -> float:
    """KD steps up to a goal; returns their seconds, to the end of the last one."""
    started = time.perf_counter()
    while trainer.step_count < goal:
        trainer.step(pool.sample(batch_size, sampling))
    trainer.metrics()
    return time.perf_counter() - started


class BatchMaker:
    """Balanced batches of one method."""

    def __init__(self, method: Method, job: JobSpec, teacher: nn.Module, device: torch.device) -> None:
        self._method = method
        self._job = job
        self._teacher = teacher
        self._device = device
        self._task = task_of(job)
        self._made = 0
        self._student: nn.Module | None = None
        self._inverter = self._build(job.seed)

    def next(self) -> SyntheticBatch:
        """The next batch."""
        if not self._method.reuse and self._inverter.rounds:
            self._start_afresh()
        count = min(self._method.batch, self._method.images - self._made)
        targets = self._task.targets(self._made, count)
        self._made += count
        return self._inverter.invert(targets)

    def use_student(self, student: nn.Module) -> None:
        """The adversarial term is against this student from now on."""
        self._student = student
        self._inverter.use_student(student)

    def _start_afresh(self) -> None:
        """A generator with new weights. The BatchNorm average stays, so that only the reuse is taken away."""
        before = self._inverter.state_dict()
        self._inverter = self._build(self._job.seed + 1_000_003 * self._inverter.rounds)
        kept = {name: before[name] for name in ("rounds", "bn_average")}
        self._inverter.load_state_dict(self._inverter.state_dict() | kept)
        self._inverter.use_student(self._student)

    def _build(self, seed: int) -> Inverter[Any]:
        assert self._job.synthesis is not None
        seed = seeds.partition_seed(seed)
        setup = Setup(
            self._teacher,
            self._task,
            self._job.teacher.input,
            seed=seed,
            device=self._device,
            precision=self._job.precision,
        )
        return build_inverter(self._job.synthesis, setup)
