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

from benchmarks.records import Cells, Record, command_line, finish, markdown, provenance, results_folder, say, table
from benchmarks.zoo_cells import BATCH, CPU, budget_of, distil, job_of, new_student, new_trainer, top1, train
from benchmarks.zoo_images import load_images
from benchmarks.zoo_teachers import ZOO, input_of, load_teacher
from distiller.pool import ImagePool
from shared import seeds
from shared.shards.picture_grid import picture_grid
from shared.tasks.quality import Verdict

GOAL, GOAL_ELSEWHERE, EASY = 0.80, 0.85, 0.95
"""Share of the teacher that a student must reach where real images reach ``EASY``; elsewhere, of what those reach."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder with CIFAR-10 tars and public teachers; without, those are left out"
    )
    parser.add_argument("--only", nargs="+", choices=ZOO, help="teachers (default: all that the data allow)")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/experiments.md has it")
    parser.add_argument("--teachers", action="store_true", help="train and measure the teachers, nothing else")
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
    if options.teachers:
        for name in names:
            images = load_images(ZOO[name].data, options.data)
            teacher = load_teacher(name, images, options.data)
            say(f"{name}: {top1(teacher, images, input_of(ZOO[name], images[0], ZOO[name].norm)):.4f}")
        return
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
    if options.markdown:
        print(markdown(rows_of(result)))
    finish("zoo", result, describe(result), options)


def measure_cell(name: str, seed: int, seconds: float, data: Path | None, pictures: Path | None = None) -> Record:
    """One student of one teacher, and the one of real images."""
    entry = ZOO[name]
    images = load_images(entry.data, data)
    teacher = load_teacher(name, images, data)
    input = input_of(entry, images[0], entry.given or entry.norm)
    truth = input_of(entry, images[0], entry.norm)
    rounds, steps = budget_of(name, job_of(input, 2, 2, entry.classes, 0), teacher, seconds)
    job = job_of(input, rounds, steps, entry.classes, seed)
    started, clock = time.process_time(), time.perf_counter()
    student, cell, last = distil(job, teacher, new_student(name, seed))
    took, clock = time.process_time() - started, time.perf_counter() - clock
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures / f"{name}-{seed}.png").write_bytes(picture_grid(last.images.numpy(), last.targets.numpy()))
    real = new_student(name, seed)
    trainer = new_trainer(job, real, teacher, truth)
    pool = ImagePool(len(images[0]), truth.shape, CPU)
    pool.add(images[0][: rounds * BATCH])
    train(trainer, pool, steps, seeds.generator(seed, seeds.SAMPLING))
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


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """The table, header first."""
    rows = [
        [
            "teacher",
            "seeds",
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
            str(row["seeds"]),
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
    return rows


def describe(result: Mapping[str, Any]) -> str:
    """The table for people."""
    return table(rows_of(result))


if __name__ == "__main__":
    main()
