"""CIFAR-10: the default job against the published settings, at equal time of the whole job.

Teachers are public ones that nobody here trained. Methods: ``default``; ``paper``, the preset ``paper-fast-5`` with
classes drawn by chance (the best image is kept one by one there too, where the authors keep the best batch);
``deepinversion`` as the floor; and ``real``, 10,000 real images with the KD steps of the default, as the ceiling. The
time is CPU time of this process for synthesis and distillation in turn (see ``zoo_cells``), so lockstep, which costs
waiting where two processes work side by side, costs nothing here: ``benchmarks.decoupling`` measures that. Accuracy
along the run is measured on 1,000 of the test images; its time does not count.

Cells are kept as they finish: the same command goes on where it was interrupted. ``--quick`` without ``--data`` runs to
its end with drawn shapes and networks that know nothing; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.records import Cells, Record, command_line, finish, provenance, results_folder, say, spread, table
from benchmarks.zoo_cells import BATCH, CPU, budget_of, distil, job_of, new_student, new_trainer, top1, train
from benchmarks.zoo_images import Images, load_images
from benchmarks.zoo_teachers import ZOO, input_of, load_teacher
from distiller.pool import ImagePool
from shared import seeds
from shared.specs import InputSpec, JobSpec

PAIRS = {"resnet20-resnet8": "cifar-resnet20", "resnet44-resnet20": "cifar-resnet44"}
"""Teacher and student, and their name in the zoo."""

DEEPINVERSION_STEPS = 500
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper-fast-5"},
    "deepinversion": {"method": "deepinversion", "steps": DEEPINVERSION_STEPS},
    "real": {},
}
TRY_STEPS = 10
"""Of a round of DeepInversion that is only tried for its time."""

CURVE_POINTS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 tars and teachers")
    parser.add_argument(
        "--pairs", nargs="+", choices=PAIRS, default=[*PAIRS], help="teacher and student (default: all)"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="default: all")
    parser.add_argument("--minutes", nargs="+", type=float, default=[10.0, 30.0, 90.0], help="default: 10 30 90")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.data is None and not options.quick:
        sys.exit("--data is missing: the folder with cifar10-train.tar, cifar10-test.tar and teachers/")
    if options.quick:
        options.seeds, options.minutes = 1, [0.005]
    torch.set_num_threads(options.threads)
    result = {**provenance(options.threads, "cpu"), "quick": options.quick, **run(options)}
    finish("cifar10", result, describe(result), options)


def run(options: argparse.Namespace) -> Record:
    """All cells, and the result made of them."""
    cells = Cells(results_folder(options) / "cifar10-cells", fresh=options.fresh)
    found = []
    for seed in range(options.seeds):
        for minutes in options.minutes:
            for pair in options.pairs:
                for method in options.methods:
                    settings = {"label": f"{pair} {method}", "seed": seed, "minutes": minutes, "quick": options.quick}
                    cell = cells.find(settings)
                    if cell is None:
                        cell = measure_cell(pair, method, seed, 60 * minutes, options.data)
                        cell |= provenance(options.threads, "cpu")
                        cells.store(settings, cell)
                    say(f"{pair} {method} {minutes:g} min seed {seed}: {cell['student_top1']:.4f}")
                    found.append({"pair": pair, "method": method, "minutes": minutes, "seed": seed, **cell})
    return {"rows": summarize(found), "curves": curves_of(found)}


def measure_cell(pair: str, method: str, seed: int, seconds: float, data: Path | None) -> Record:
    """One job of one method, measured on the real test images."""
    name = PAIRS[pair]
    entry = ZOO[name]
    images, teacher = load(name, data)
    input = input_of(entry, images[0], entry.norm)
    budget = _budget(name, method, input, teacher, seconds)
    rounds, steps = budget
    job = job_of(input, rounds, steps, entry.classes, seed, METHODS[method])
    student, points = new_student(name, seed), []
    started, watching, every = time.process_time(), 0.0, max(1, rounds // CURVE_POINTS)

    def watch(images_made: int, kd_steps: int) -> None:
        nonlocal watching
        if images_made // BATCH % every and images_made // BATCH != rounds:
            return
        before = time.process_time()
        found = top1(student, images, input, 1000)
        points.append([round(before - started - watching, 2), images_made, kd_steps, found])
        watching += time.process_time() - before

    cell: Record = {}
    if method == "real":
        _train_on_real(job, student, teacher, images)
    else:
        _, cell, _ = distil(job, teacher, student, watch=watch, uniform_targets=method == "paper")
    cell["cpu_seconds"] = round(time.process_time() - started - watching, 1)
    return {
        **cell,
        "teacher_top1": top1(teacher, images, input, 10_000),
        "student_top1": top1(student, images, input, 10_000),
        "images": len(images[0]) if method == "real" else rounds * BATCH,
        "kd_steps": steps,
        "points": points,
    }


def load(name: str, data: Path | None) -> tuple[Images, nn.Module]:
    """Images and the teacher; without data what stands in for them."""
    if data is not None:
        images = load_images("cifar", data)
        return images, load_teacher(name, images, data)
    first, labels, tests, truths = load_images("shapes32", None)
    torch.manual_seed(0)
    return (first[:256], labels[:256], tests[:64], truths[:64]), ZOO[name].teacher().eval()


def _budget(name: str, method: str, input: InputSpec, teacher: nn.Module, seconds: float) -> tuple[int, int]:
    synthesis = METHODS[method]
    if method != "deepinversion":
        return budget_of(name, job_of(input, 2, 2, 10, 0, synthesis), teacher, seconds, fewest=2)
    job = job_of(input, 2, 2, 10, 0, {**synthesis, "steps": TRY_STEPS})
    part = TRY_STEPS / METHODS[method]["steps"]
    return budget_of(name, job, teacher, seconds, fewest=1, rounds_in_try=part)


def _train_on_real(job: JobSpec, student: nn.Module, teacher: nn.Module, images: Images) -> None:
    assert job.distillation is not None
    assert job.distillation.steps is not None
    pool = ImagePool(len(images[0]), job.teacher.input.shape, CPU)
    pool.add(images[0])
    trainer = new_trainer(job, student, teacher, job.teacher.input)
    train(trainer, pool, job.distillation.steps, seeds.generator(job.seed, seeds.SAMPLING))


def summarize(cells: Sequence[Record]) -> list[Record]:
    """One row for each pair, time and method, with its accuracy over that of ``paper`` at the same time."""
    rows: list[Record] = []
    for pair, minutes, method in dict.fromkeys((cell["pair"], cell["minutes"], cell["method"]) for cell in cells):
        own = [c for c in cells if (c["pair"], c["minutes"], c["method"]) == (pair, minutes, method)]
        top1s = spread([cell["student_top1"] for cell in own], 4)
        teacher = own[0]["teacher_top1"]
        rows.append(
            {
                "pair": pair,
                "minutes": minutes,
                "method": method,
                "seeds": len(own),
                "teacher_top1": teacher,
                "student_top1": top1s,
                "share": round(top1s["median"] / teacher, 4) if teacher else None,
                "images": own[0]["images"],
                "kd_steps": own[0]["kd_steps"],
                "cpu_seconds": spread([cell["cpu_seconds"] for cell in own], 1),
            }
        )
    for row in rows:
        paper = [
            other["student_top1"]["median"]
            for other in rows
            if (other["pair"], other["minutes"], other["method"]) == (row["pair"], row["minutes"], "paper")
        ]
        row["over_paper"] = round(row["student_top1"]["median"] / paper[0], 3) if paper and paper[0] else None
    return rows


def curves_of(cells: Sequence[Record]) -> list[Record]:
    """Accuracy along each run, in the form that ``plots`` draws."""
    return [
        {
            "pair": cell["pair"],
            "minutes": cell["minutes"],
            "method": cell["method"],
            "seed": cell["seed"],
            "columns": ["seconds", "images", "kd_steps", "top1"],
            "points": cell["points"],
        }
        for cell in cells
        if cell["points"]
    ]


def describe(result: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = [
        ["pair, minutes, method", "seeds", "teacher", "student (min–max)", "share", "over paper", "images", "steps"]
    ]
    for row in result["rows"]:
        top1s = row["student_top1"]
        rows.append(
            [
                f"{row['pair']}, {row['minutes']:g}, {row['method']}",
                str(row["seeds"]),
                f"{row['teacher_top1']:.4f}",
                f"{top1s['median']:.4f} ({top1s['min']:.4f}–{top1s['max']:.4f})",
                "" if row["share"] is None else f"{row['share']:.2f}",
                "" if row["over_paper"] is None else f"{row['over_paper']:.2f}",
                f"{row['images']:,}",
                f"{row['kd_steps']:,}",
            ]
        )
    return table(rows)


if __name__ == "__main__":
    main()
