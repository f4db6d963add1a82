"""The default job on teachers that it was not made for: does it make a good student, and does it know?

Each cell is one teacher with one seed: the default synthesis and distillation, taking turns in this process, in a given
time. How many images and steps that allows is measured first. Time is CPU time of this process, summed over its threads
(``time.process_time``), so that what else runs on the machine takes none of it; clock time is recorded beside it.
Student and teacher are measured on real images; the verdict comes from the images held back, without labels. The
ceiling is the same student on real images, as many and with the same number of steps; its time does not count.

Run two at a time with ``--only`` and ``--threads 1``; cells that are there are not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.headline_cells import steps_due
from benchmarks.records import Cells, Record, command_line, finish, provenance, results_folder, say, table
from benchmarks.zoo_teachers import ZOO, Images, input_of, load_images, load_teacher
from distiller.held_back import HeldBack
from distiller.pool import ImagePool
from distiller.trainer import Trainer
from shared import seeds
from shared.networks.image_operations import Normalization, to_pixels
from shared.shards.picture_grid import picture_grid
from shared.specs import InputSpec, JobSpec
from shared.tasks.base import build_task
from shared.tasks.quality import Verdict, judge, measures_of_series
from synth_service.inversion import Setup, SyntheticBatch, build_inverter

CPU = torch.device("cpu")
SYNTHESIS_SHARE = 0.6
"""Of a cell's time; the rest trains the student."""

BATCH = 128
FEWEST_ROUNDS = 10
GOAL, GOAL_ELSEWHERE, EASY = 0.80, 0.85, 0.95
"""Share of the teacher that a student must reach where real images reach ``EASY``; elsewhere, of what those reach."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder with CIFAR-10 tars and public teachers; without, those are left out"
    )
    parser.add_argument("--only", nargs="+", choices=ZOO, help="teachers (default: all that the data allow)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU time of each cell (default 300)")
    parser.add_argument("--pictures", type=Path, help="folder for grids of the last images, outside the repository")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.seeds = min(options.seconds, 10.0), 1
    torch.set_num_threads(options.threads)
    names = options.only or [name for name, entry in ZOO.items() if options.data or entry.data != "cifar"]
    if not options.only and not options.data:
        say("without --data the CIFAR teachers are left out")
    cells = Cells(results_folder(options) / "zoo-cells", fresh=options.fresh)
    found = []
    for seed in range(options.seeds):
        for name in names:
            settings = {"label": name, "seed": seed, "seconds": options.seconds}
            cell = cells.find(settings)
            if cell is None:
                cell = measure_cell(name, seed, options.seconds, options.data, options.pictures)
                cell |= provenance(options.threads, "cpu")
                cells.store(settings, cell)
            found.append({"settings": settings, **cell})
            say(
                f"{name} seed {seed}: student {cell['student_top1']:.3f} of teacher {cell['teacher_top1']:.3f}, "
                f"real images {cell['real_top1']:.3f}, {cell['quality']['verdict']}"
            )
    result = {**provenance(options.threads, "cpu"), "quick": options.quick, "teachers": summarize(found)}
    finish("zoo", result, describe(result), options)


def measure_cell(name: str, seed: int, seconds: float, data: Path | None, pictures: Path | None = None) -> Record:
    """One student of one teacher, and the one of real images."""
    entry = ZOO[name]
    images = load_images(entry.data, data)
    teacher = load_teacher(name, images, data)
    input = input_of(entry, images[0], entry.given or entry.norm)
    truth = input_of(entry, images[0], entry.norm)
    rounds, steps = budget_of(name, input, teacher, seconds)
    job = job_of(input, rounds, steps, entry.classes, seed)
    started, clock = time.process_time(), time.perf_counter()
    student, cell, last = distil(job, teacher, _student(name, seed))
    took, clock = time.process_time() - started, time.perf_counter() - clock
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures / f"{name}-{seed}.png").write_bytes(picture_grid(last.images.numpy(), last.targets.numpy()))
    real = _student(name, seed)
    trainer = _trainer(job, real, teacher, truth)
    pool = ImagePool(len(images[0]), truth.shape, CPU)
    pool.add(images[0][: rounds * BATCH])
    _train(trainer, pool, steps, seeds.generator(seed, seeds.SAMPLING))
    return {
        **cell,
        "teacher_top1": top1(teacher, images, truth),
        "student_top1": top1(student, images, input),
        "real_top1": top1(real, images, truth),
        "images": rounds * BATCH,
        "kd_steps": steps,
        "cpu_seconds": round(took, 1),
        "clock_seconds": round(clock, 1),
    }


def job_of(input: InputSpec, rounds: int, steps: int, classes: int, seed: int) -> JobSpec:
    """The default job, with as many images and steps as there is time for."""
    teacher = {"arch": "resnet20", "checkpoint": "-", "num_classes": classes, "input": input.model_dump()}
    return JobSpec.model_validate(
        {
            "seed": seed,
            "teacher": teacher,
            "student": {"arch": "resnet8"},
            "synthesis": {"num_images": rounds * BATCH, "batch_size": BATCH},
            "distillation": {"steps": steps, "batch_size": BATCH},
        }
    )


def distil(job: JobSpec, teacher: nn.Module, student: nn.Module) -> tuple[nn.Module, Record, SyntheticBatch]:
    """Synthesis and distillation in turn; the student, what the job knows of its quality, and the last images."""
    assert job.synthesis is not None
    assert job.distillation is not None
    assert job.distillation.steps is not None
    input, steps = job.teacher.input, job.distillation.steps
    task = build_task("classification", job.teacher.num_classes)
    inverter = build_inverter(job.synthesis, Setup(teacher, task, input, seed=job.seed, device=CPU))
    trainer = _trainer(job, student, teacher, input)
    pool, held_back = ImagePool(job.synthesis.num_images, input.shape, CPU), HeldBack(task, input, CPU)
    sampling = seeds.generator(job.seed, seeds.SAMPLING)
    rounds = job.synthesis.total_batches
    early = round(steps * (1 - job.distillation.full_pool_share))
    rows: list[Mapping[str, float | None]] = []
    for done in range(1, rounds + 1):
        batch = inverter.invert(task.targets((done - 1) * BATCH, BATCH))
        seen = (batch.described["teacher_top1"] == batch.targets).double().mean()
        rows.append(
            {"label_agreement": float(seen), "teacher_confidence": float(batch.described["teacher_confidence"].mean())}
        )
        pool.add(torch.from_numpy(held_back.take(batch.images.numpy())))
        rows += _train(trainer, pool, steps if done == rounds else steps_due(done, rounds, early), sampling)
        if trainer.step_count:
            inverter.use_student(student)
    measures = measures_of_series(rows) | held_back.measure(student, teacher)
    return student, {"quality": judge(measures).model_dump(mode="json"), "last_losses": batch.losses}, batch


def budget_of(name: str, input: InputSpec, teacher: nn.Module, seconds: float) -> tuple[int, int]:
    """Rounds and KD steps that fit, from the second of two tries of each."""
    job = job_of(input, 2, 2, ZOO[name].classes, 0)
    assert job.synthesis is not None
    task, student = build_task("classification", job.teacher.num_classes), _student(name, 0)
    inverter = build_inverter(job.synthesis, Setup(teacher, task, input, seed=0, device=CPU))
    inverter.use_student(student)
    trainer = _trainer(job, student, teacher, input)
    for _ in range(2):
        started = time.process_time()
        images = inverter.invert(task.targets(0, BATCH)).images
        middle = time.process_time()
        trainer.step(images)
        ended = time.process_time()
    rounds = int(seconds * SYNTHESIS_SHARE / (middle - started))
    return max(rounds, FEWEST_ROUNDS), max(int(seconds * (1 - SYNTHESIS_SHARE) / (ended - middle)), 20)


def _student(name: str, seed: int) -> nn.Module:
    with seeds.seeded_globally(seed, seeds.STUDENT):
        return ZOO[name].student()


def _trainer(job: JobSpec, student: nn.Module, teacher: nn.Module, input: InputSpec) -> Trainer:
    assert job.distillation is not None
    task = build_task("classification", job.teacher.num_classes)
    return Trainer(job.distillation, student, teacher, task=task, input=input, seed=job.seed, device=CPU)


def _train(trainer: Trainer, pool: ImagePool, goal: int, sampling: torch.Generator) -> list[dict[str, float | None]]:
    rows: list[dict[str, float | None]] = []
    while trainer.step_count < goal:
        for _ in range(min(16, goal - trainer.step_count)):
            trainer.step(pool.sample(BATCH, sampling))
        rows.append({"loss": trainer.metrics()["loss"]})
    return rows


@torch.no_grad()
def top1(network: nn.Module, images: Images, input: InputSpec, most: int = 2000) -> float:
    """Accuracy on real test images, as a user would run the network."""
    network.eval()
    normalize = Normalization(input)
    answers: list[Tensor] = [network(normalize(to_pixels(part))).argmax(1) for part in images[2][:most].split(250)]
    return round(float((torch.cat(answers) == images[3][:most]).double().mean()), 4)


def summarize(cells: Sequence[Record]) -> list[Record]:
    """One row for each teacher."""
    rows = []
    for name in dict.fromkeys(cell["settings"]["label"] for cell in cells):
        own = [cell for cell in cells if cell["settings"]["label"] == name]
        middle = {key: median(cell[key] for cell in own) for key in ("teacher_top1", "student_top1", "real_top1")}
        share, of_real = middle["student_top1"] / middle["teacher_top1"], middle["student_top1"] / middle["real_top1"]
        is_easy = middle["real_top1"] >= EASY * middle["teacher_top1"]
        poor = [cell["quality"]["verdict"] == Verdict.POOR for cell in own]
        truly = [cell["student_top1"] < cell["real_top1"] / 2 for cell in own]
        rows.append(
            {
                "teacher": name,
                "seeds": len(own),
                **middle,
                "share": round(share, 4),
                "of_real": round(of_real, 4),
                "reaches_goal": share >= GOAL if is_easy else of_real >= GOAL_ELSEWHERE,
                "verdicts": [cell["quality"]["verdict"] for cell in own],
                "verdicts_right": poor == truly,
                "images": round(median(cell["images"] for cell in own)),
                "kd_steps": round(median(cell["kd_steps"] for cell in own)),
            }
        )
    return rows


def describe(result: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = [
        [
            "teacher",
            "top-1",
            "student",
            "share",
            "real images",
            "of these",
            "goal",
            "verdicts",
            "right",
            "images",
            "steps",
        ]
    ]
    rows += [
        [
            row["teacher"],
            f"{row['teacher_top1']:.3f}",
            f"{row['student_top1']:.3f}",
            f"{row['share']:.2f}",
            f"{row['real_top1']:.3f}",
            f"{row['of_real']:.2f}",
            "yes" if row["reaches_goal"] else "no",
            ", ".join(row["verdicts"]),
            "yes" if row["verdicts_right"] else "no",
            f"{row['images']:,}",
            f"{row['kd_steps']:,}",
        ]
        for row in result["teachers"]
    ]
    return table(rows)


if __name__ == "__main__":
    main()
