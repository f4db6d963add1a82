"""Whole jobs in one process, in a given CPU time: what the zoo and CIFAR-10 are measured with.

Synthesis and distillation take turns. How many images and steps fit is measured first, from CPU time of this process
(``time.process_time``), so that what else runs on the machine changes no result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.headline_cells import steps_due
from benchmarks.records import Record
from benchmarks.zoo_images import Images
from benchmarks.zoo_teachers import ZOO
from distiller.held_back import HeldBack
from distiller.pool import ImagePool
from distiller.trainer import Trainer
from shared import seeds
from shared.networks.image_operations import Normalization, to_pixels
from shared.specs import InputSpec, JobSpec
from shared.tasks.base import build_task
from shared.tasks.quality import judge, measures_of_series
from synth_service.inversion import Setup, SyntheticBatch, build_inverter

CPU = torch.device("cpu")
SYNTHESIS_SHARE = 0.6
"""Of a cell's time; the rest trains the student."""

BATCH = 128
FEWEST_ROUNDS = 10
Watch = Callable[[int, int], None]


def job_of(
    input: InputSpec, rounds: int, steps: int, classes: int, seed: int, synthesis: Mapping[str, Any] | None = None
) -> JobSpec:
    """The default job, or one with other synthesis, with as many images and steps as there is time for."""
    teacher = {"arch": "resnet20", "checkpoint": "-", "num_classes": classes, "input": input.model_dump()}
    return JobSpec.model_validate(
        {
            "seed": seed,
            "teacher": teacher,
            "student": {"arch": "resnet8"},
            "synthesis": {"num_images": rounds * BATCH, "batch_size": BATCH, **(synthesis or {})},
            "distillation": {"steps": steps, "batch_size": BATCH},
        }
    )


def distil(
    job: JobSpec,
    teacher: nn.Module,
    student: nn.Module,
    *,
    watch: Watch | None = None,
    uniform_targets: bool = False,
) -> tuple[nn.Module, Record, SyntheticBatch]:
    """Synthesis and distillation in turn.

    Args:
        job: from ``job_of``.
        teacher: trained, in eval mode.
        student: trained in place.
        watch: called after every round with images and KD steps so far.
        uniform_targets: classes drawn by chance, as published, where ours are balanced.

    Returns:
        The student, what the job knows of its quality, and the last images.
    """
    assert job.synthesis is not None
    assert job.distillation is not None
    assert job.distillation.steps is not None
    input, steps = job.teacher.input, job.distillation.steps
    task = build_task("classification", job.teacher.num_classes)
    inverter = build_inverter(job.synthesis, Setup(teacher, task, input, job.seed, CPU, job.precision))
    trainer = new_trainer(job, student, teacher, input)
    pool = ImagePool(job.synthesis.num_images, input.shape, CPU)
    held_back = HeldBack(task, input, CPU, teacher)
    sampling = seeds.generator(job.seed, seeds.SAMPLING)
    drawing = torch.Generator().manual_seed(job.seed)
    rounds = job.synthesis.total_batches
    early = round(steps * (1 - job.distillation.full_pool_share))
    rows: list[Mapping[str, float | None]] = []
    for done in range(1, rounds + 1):
        wanted = task.targets((done - 1) * BATCH, BATCH)
        if uniform_targets:
            wanted = torch.randint(job.teacher.num_classes, (BATCH,), generator=drawing)
        batch = inverter.invert(wanted)
        seen = (batch.described["teacher_top1"] == batch.targets).double().mean()
        rows.append(
            {"label_agreement": float(seen), "teacher_confidence": float(batch.described["teacher_confidence"].mean())}
        )
        pool.add(torch.from_numpy(held_back.take(batch.images.numpy())))
        rows += train(trainer, pool, steps if done == rounds else steps_due(done, rounds, early), sampling)
        if trainer.step_count:
            inverter.use_student(student)
        if watch is not None:
            watch(done * BATCH, trainer.step_count)
    measures = measures_of_series(rows) | held_back.measure(student, teacher)
    return student, {"quality": judge(measures).model_dump(mode="json"), "last_losses": batch.losses}, batch


def budget_of(
    name: str,
    job: JobSpec,
    teacher: nn.Module,
    seconds: float,
    *,
    fewest: int = FEWEST_ROUNDS,
    rounds_in_try: float = 1,
) -> tuple[int, int]:
    """Rounds and KD steps that fit, from the second of two tries of each.

    Args:
        name: of the teacher; its student is measured.
        job: two rounds of what is to be measured, or of a shorter form.
        teacher: in eval mode.
        seconds: of CPU time, in all.
        fewest: rounds at least, though they take longer.
        rounds_in_try: what a round of ``job`` is of a whole one, where that takes too long to be tried.
    """
    input = job.teacher.input
    assert job.synthesis is not None
    task, student = build_task("classification", job.teacher.num_classes), new_student(name, 0)
    inverter = build_inverter(job.synthesis, Setup(teacher, task, input, 0, CPU, job.precision))
    inverter.use_student(student)
    trainer = new_trainer(job, student, teacher, input)
    for _ in range(2):
        started = time.process_time()
        images = inverter.invert(task.targets(0, BATCH)).images
        middle = time.process_time()
        trainer.step(images[: trainer.images_from_shards])
        ended = time.process_time()
    rounds = int(seconds * SYNTHESIS_SHARE * rounds_in_try / (middle - started))
    return max(rounds, fewest), max(int(seconds * (1 - SYNTHESIS_SHARE) / (ended - middle)), 20)


def new_student(name: str, seed: int) -> nn.Module:
    """The untrained student of an entry of the zoo."""
    with seeds.seeded_globally(seed, seeds.STUDENT):
        return ZOO[name].student()


def new_trainer(job: JobSpec, student: nn.Module, teacher: nn.Module, input: InputSpec) -> Trainer:
    """The trainer of a job, for the shape and normalization given."""
    assert job.distillation is not None
    task = build_task("classification", job.teacher.num_classes)
    spec, seed = job.distillation, job.seed
    return Trainer(spec, student, teacher, task=task, input=input, seed=seed, device=CPU, precision=job.precision)


def train(trainer: Trainer, pool: ImagePool, goal: int, sampling: torch.Generator) -> list[dict[str, float | None]]:
    """KD steps up to ``goal`` on samples of the pool; the loss after every 16."""
    rows: list[dict[str, float | None]] = []
    while trainer.step_count < goal:
        for _ in range(min(16, goal - trainer.step_count)):
            trainer.step(pool.sample(trainer.images_from_shards, sampling))
        rows.append({"loss": trainer.metrics()["loss"]})
    return rows


@torch.no_grad()
def top1(network: nn.Module, images: Images, input: InputSpec, most: int = 2000) -> float:
    """Accuracy on real test images, as a user would run the network."""
    network.eval()
    normalize = Normalization(input)
    answers: list[Tensor] = [network(normalize(to_pixels(part))).argmax(1) for part in images[2][:most].split(250)]
    return round(float((torch.cat(answers) == images[3][:most]).double().mean()), 4)
