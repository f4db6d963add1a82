"""A whole job in one process, in float32 and in whatever else pays: ``python -m benchmarks.job --json``.

The digits job, synthesis and distillation taking turns as in ``benchmarks.headline_cells``: what it costs in processor
time, and what the student is worth on digits that nobody trained on. Precisions and seeds alternate, so that a busy
machine slows all alike; processor time is counted and not the clock, for the same reason.

``floor_ratio`` is the job's processor time ÷ that of its *floor* in the same precision: as many rounds and KD steps of
nothing but their convolutions and linear layers (``benchmarks.floor``), measured in the same process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median, stdev
from typing import get_args

import torch

from benchmarks.digits import digits_fields, load_networks, task_of
from benchmarks.floor import Floor
from benchmarks.headline_cells import Budget, Method, job_of, measure_cell
from benchmarks.records import Record, command_line, finish, provenance, say, table
from distiller.trainer import Trainer
from shared.networks.devices import choose_device
from shared.specs import FastMetaSynthesis
from shared.specs.precision import PrecisionName
from synth_service.inversion import Setup, build_inverter
from synth_service.inversion.generator_inverter import GeneratorInverter


def processor_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure_floor(method: Method, budget: Budget, precision: PrecisionName, device: torch.device) -> Record:
    """Processor seconds of one round and one KD step, and of their floors, in turn."""
    job = job_of(method, budget, 0).model_copy(update={"precision": precision})
    assert job.distillation is not None
    assert isinstance(job.synthesis, FastMetaSynthesis)
    teacher, student = load_networks(job, device)
    setup = Setup(teacher, task_of(job), job.teacher.input, seed=0, device=device, precision=precision)
    inverter = build_inverter(job.synthesis, setup)
    assert isinstance(inverter, GeneratorInverter)
    opponent, learner = load_networks(job, device)[1], student
    inverter.use_student(opponent)
    targets = setup.task.targets(0, method.batch)
    trainer = Trainer(
        job.distillation,
        learner,
        load_networks(job, device)[0],
        task=setup.task,
        input=job.teacher.input,
        seed=0,
        device=device,
        precision=precision,
    )
    batch = inverter.invert(targets).images
    batch = batch[torch.arange(budget.kd_batch) % len(batch)]
    works: dict[str, Callable[[], object]] = {
        "round": lambda: inverter.invert(targets),
        "step": lambda: trainer.step(batch),
    }
    floors = {
        "round": Floor((teacher, opponent, inverter.adapted), works["round"], job.synthesis.steps),
        "step": Floor((trainer.teacher, trainer.student), works["step"], 1),
    }
    found: Record = {}
    for name, work in works.items():
        pairs = [(processor_seconds(work), processor_seconds(floors[name].run)) for _ in range(7)]
        ours, least = (median(side) for side in zip(*pairs[1:], strict=True))
        found[name] = {"ours": round(ours, 4), "floor": round(least, 4), "floor_ratio": round(ours / least, 3)}
    return found


def measure(method: Method, budget: Budget, seeds: int, precisions: Sequence[PrecisionName], threads: int) -> Record:
    """All seeds in all precisions."""
    device = choose_device("cpu")
    cells: dict[str, list[Record]] = {precision: [] for precision in precisions}
    for seed in range(seeds):
        for precision in precisions:
            started = time.process_time()
            cell = measure_cell(method, budget, seed, device, precision)
            cell["processor_seconds"] = round(time.process_time() - started, 2)
            cells[precision].append(cell)
            say(f"  seed {seed} {precision}: top-1 {cell['student_top1']:.4f}, {cell['processor_seconds']} s")
    result: Record = {}
    for precision in precisions:
        found = cells[precision]
        floor = measure_floor(method, budget, precision, device)
        least = method.rounds * floor["round"]["floor"] + budget.kd_steps * floor["step"]["floor"]
        seconds = median(cell["processor_seconds"] for cell in found)
        top1 = [cell["student_top1"] for cell in found]
        result[precision] = {
            "student_top1": [round(value, 5) for value in top1],
            "mean_top1": round(fmean(top1), 5),
            "spread_top1": round(stdev(top1), 5) if len(top1) > 1 else None,
            "mean_agreement": round(fmean(cell["agreement"] for cell in found), 5),
            "processor_seconds": seconds,
            "floor_seconds": round(least, 2),
            "floor_ratio": round(seconds / least, 3),
            **floor,
        }
        say(f"  {precision}: {result[precision]}")
    return {"threads": threads, "images": method.images, "kd_steps": budget.kd_steps, "precisions": result}


def describe(result: Record) -> str:
    """The table for people."""
    rows = [["precision", "student top-1", "± seeds", "CPU seconds", "÷ floor", "round ÷ floor", "step ÷ floor"]]
    rows += [
        [
            name,
            f"{found['mean_top1']:.4f}",
            "-" if found["spread_top1"] is None else f"{found['spread_top1']:.4f}",
            f"{found['processor_seconds']:.1f}",
            f"{found['floor_ratio']:.2f}",
            f"{found['round']['floor_ratio']:.2f}",
            f"{found['step']['floor_ratio']:.2f}",
        ]
        for name, found in result["precisions"].items()
    ]
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser: argparse.ArgumentParser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="students of each precision (default 3)")
    parser.add_argument(
        "--precisions", nargs="+", choices=get_args(PrecisionName), default=["float32", "bfloat16"], help="as in a job"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    fields = digits_fields()
    method = Method("fast-5", fields["synthesis"]["num_images"], fields["synthesis"]["batch_size"], {})
    budget = Budget(fields["distillation"]["steps"], 128)
    if options.quick:
        method, budget, options.seeds = replace(method, images=64, batch=32), Budget(4, 32), 1
    about = provenance(options.threads, options.device)
    result = {**about, "quick": options.quick}
    result |= measure(method, budget, options.seeds, options.precisions, options.threads)
    finish("job", result, describe(result), options)


if __name__ == "__main__":
    main()
