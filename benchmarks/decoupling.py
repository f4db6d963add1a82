"""Does decoupling save time, and does it cost accuracy? ``python -m benchmarks.decoupling --json``

The digits job runs with real processes (server, API, one synthesis worker, one distiller), each time in a
service of its own, in three ways that take turns:

- ``free``: synthesis and distillation side by side; each process has half of the threads.
- ``lockstep``: one after the other, batch by batch, as in the paper, with the same threads for each process.
- ``lockstep, all threads``: the same, but each process has all threads, since only one works at a time. On one
  machine this is the fair rival; where each half has a machine or GPU of its own, the plain one is.

All make the same images and the same number of KD steps. Wall time is the job's, from its start to its end,
with workers that are up and waiting.

*Staleness* is measured for every shard that was made against a student: the KD steps done when the shard was
sealed, minus those of the snapshot that the shard names. In lockstep none are done in between. Otherwise
the number of steps is interpolated between the moments at which the distiller reported it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.digits import digits_fields
from benchmarks.records import Cells, Record, command_line, finish, provenance, results_folder, say, spread, table
from benchmarks.service import MeasuredService, measured_service
from shared.jobs import JobRecord, Role, Task
from shared.shards.manifest import ShardManifest

WAYS = ("free", "lockstep", "lockstep, all threads")
JOB_SECONDS = 1800.0


def job_fields(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The digits job; in every way the same images and the same number of steps."""
    fields = digits_fields(seed=seed)
    batch = fields["synthesis"]["batch_size"]
    fields["synthesis"]["num_images"] = batch * options.batches
    warmup = max(1, options.batches // 10)
    steps = (options.batches - warmup) * options.steps_per_batch
    pacing: dict[str, Any] = {"pacing": "free", "steps": steps}
    if way != "free":
        pacing = {"pacing": "lockstep", "steps": None, "steps_per_batch": options.steps_per_batch}
    fields["distillation"] |= {"warmup_batches": warmup, **pacing}
    return fields


def threads_of(way: str, threads: int) -> int:
    """Threads of each of the two processes."""
    return threads if way == "lockstep, all threads" else max(1, threads // 2)


def measure_cell(way: str, seed: int, options: argparse.Namespace) -> Record:
    """One job in a service of its own."""
    with measured_service(threads_of(way, options.threads)) as service:
        job = service.run(job_fields(way, seed, options), JOB_SECONDS)
        shards = service.shards(job.id)
        steps = reported_steps(service, job.id)
    assert job.result is not None
    assert job.started_at is not None
    assert job.finished_at is not None
    return {
        "wall_seconds": round(job.finished_at - job.started_at, 3),
        **stage_seconds(job),
        **{name: job.result[name] for name in ("student_top1", "teacher_top1", "agreement", "images", "kd_steps")},
        "staleness": staleness(shards, steps, in_lockstep=way != "free"),
    }


def stage_seconds(job: JobRecord) -> Record:
    """How long each half took from its start to its end, waiting for the other included."""
    stages = {"synthesis": job.stages.synthesis, "distillation": job.stages.distillation}
    return {
        f"{name}_stage_seconds": round(stage.finished_at - stage.started_at, 3)
        for name, stage in stages.items()
        if stage is not None and stage.started_at is not None and stage.finished_at is not None
    }


def reported_steps(service: MeasuredService, job_id: str) -> list[tuple[float, int]]:
    """(time, KD steps done) as far as the distiller told, in order."""
    task = str(Task(Role.DISTILLATION))
    told = [(entry["at"], entry["step"]) for entry in service.metrics(job_id) if entry["task"] == task]
    for event in service.events(job_id):
        step = event.data.get("version" if event.type == "student_published" else "step")
        if event.task == task and isinstance(step, int):
            told.append((event.at, step))
    return sorted(told)


def staleness(shards: Sequence[ShardManifest], steps: Sequence[tuple[float, int]], *, in_lockstep: bool) -> Record:
    """By how many KD steps the student of the adversarial term was behind, over the shards that had one."""
    adversarial = [shard for shard in shards if shard.student_version > 0]
    times, counts = zip(*steps, strict=True)
    behind = [
        0.0 if in_lockstep else max(0.0, float(np.interp(shard.created_at, times, counts)) - shard.student_version)
        for shard in adversarial
    ]
    return {
        "shards": len(shards),
        "shards_with_student": len(adversarial),
        "steps": spread(behind, digits=1) if behind else None,
        "mean_steps": round(mean(behind), 1) if behind else None,
    }


def measure(options: argparse.Namespace) -> dict[str, list[Record]]:
    """All cells; for each seed the ways take turns."""
    cells = Cells(results_folder(options) / "decoupling-cells", fresh=options.fresh)
    found: dict[str, list[Record]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        for way in WAYS:
            settings = {"label": way, "seed": seed, "threads": options.threads, "device": options.device}
            settings |= {"batches": options.batches, "steps_per_batch": options.steps_per_batch}
            cell = cells.find(settings)
            if cell is None:
                about = provenance(options.threads, options.device)
                cell = {**measure_cell(way, seed, options), "provenance": about}
                cells.store(settings, cell)
            say(
                f"{way:22} seed {seed}  {cell['wall_seconds']:7.1f} s  top-1 {cell['student_top1']:.4f}  "
                f"staleness {cell['staleness']['mean_steps']} steps"
            )
            found[way].append(cell)
    return found


def conclude(cells: dict[str, list[Record]], options: argparse.Namespace) -> Record:
    """The result, from the cells."""
    ways = {
        way: {
            "wall_seconds": spread([cell["wall_seconds"] for cell in group]),
            "student_top1": spread([cell["student_top1"] for cell in group]),
            "mean_staleness_steps": spread([cell["staleness"]["mean_steps"] or 0.0 for cell in group]),
            "images": group[0]["images"],
            "kd_steps": group[0]["kd_steps"],
            "threads_per_process": threads_of(way, options.threads),
        }
        for way, group in cells.items()
    }
    free = ways["free"]
    compared = {
        name: {
            "time_saved_share": round(1 - free["wall_seconds"]["median"] / other["wall_seconds"]["median"], 4),
            "top1_difference": round(free["student_top1"]["median"] - other["student_top1"]["median"], 5),
            "top1_spread": round(
                max(each["max"] - each["min"] for each in (free["student_top1"], other["student_top1"])), 5
            ),
        }
        for name, other in ways.items()
        if name != "free"
    }
    about = provenance(options.threads, options.device)
    return {**about, "quick": options.quick, "ways": ways, "free_against": compared, "cells": cells}


def describe(result: Record) -> str:
    """The table for people."""
    rows = [["way", "threads each", "s wall", "min–max", "top-1", "min–max", "staleness (steps)"]]
    for way, found in result["ways"].items():
        wall, top1 = found["wall_seconds"], found["student_top1"]
        line = [way, str(found["threads_per_process"]), f"{wall['median']:.1f}", f"{wall['min']:.1f}–{wall['max']:.1f}"]
        line += [f"{top1['median']:.4f}", f"{top1['min']:.4f}–{top1['max']:.4f}"]
        rows.append([*line, f"{found['mean_staleness_steps']['median']:.1f}"])
    lines = [
        f"free saves {against['time_saved_share']:.0%} of the time of {way}; "
        f"top-1 differs by {against['top1_difference']:+.4f} (spread over seeds {against['top1_spread']:.4f})"
        for way, against in result["free_against"].items()
    ]
    return "\n".join([table(rows), "", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, help="jobs of each way (default 3)")
    parser.add_argument("--batches", type=int, help="synthetic batches of a job (default 50, as in the example)")
    parser.add_argument("--steps-per-batch", type=int, help="KD steps for each batch after the warm-up (default 22)")
    options = parser.parse_args(arguments)
    defaults = {"seeds": 3, "batches": 50, "steps_per_batch": 22}
    if options.quick:
        defaults = {"seeds": 1, "batches": 12, "steps_per_batch": 12}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    result = conclude(measure(options), options)
    finish("decoupling", result, describe(result), options)


if __name__ == "__main__":
    main()
