"""How near KD steps come to the hardware's limit: ``python -m benchmarks.distillation --json``.

A step is what a distiller does for one batch: augmentation, the teacher's forward pass, the student forward and
backward, the optimizer. It is measured in turn with its *floor* (``benchmarks.floor``: the same convolutions and linear
layers and nothing else, in the same precision). ``floor_ratio`` is the median over the pairs of our time ÷ floor. Both
are processor time of this process and not the clock, since a busy machine stretches the clock; on one thread of
an idle one they are the same.

The setting: resnet20 teacher, resnet8 student, 3×32×32 images, batch 128, freshly initialized.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import get_args

import torch

from benchmarks.floor import Floor
from benchmarks.gpu import trainer_of
from benchmarks.records import Record, command_line, finish, provenance, say, table
from benchmarks.synthesis import Setting
from shared.specs.precision import PrecisionName

BASE = Setting(teacher="resnet20", student="resnet8", batch=128)


def processor_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(setting: Setting, pairs: int) -> Record:
    """Steps and their floor in turn, after both ran once."""
    device = torch.device("cpu")
    trainer = trainer_of(setting, device)
    batch = torch.randint(0, 256, (setting.batch, 3, setting.size, setting.size), dtype=torch.uint8)

    def step() -> None:
        trainer.step(batch)

    floor = Floor((trainer.teacher, trainer.student), step, 1)
    floor.run()
    measured = [(processor_seconds(step), processor_seconds(floor.run)) for _ in range(pairs)]
    ours, least = (median(side) for side in zip(*measured, strict=True))
    return {
        "setting": asdict(setting),
        "step_seconds": round(ours, 5),
        "floor_seconds": round(least, 5),
        "floor_ratio": round(median(a / b for a, b in measured), 3),
        "floor_operations": floor.describe(),
        "pairs": pairs,
    }


def describe(result: Record) -> str:
    """The table for people."""
    rows = [["precision", "ms/step", "floor, ms", "÷ floor"]]
    for name, found in result["precisions"].items():
        seconds = (found["step_seconds"], found["floor_seconds"])
        rows.append([name, *(f"{1000 * each:.1f}" for each in seconds), f"{found['floor_ratio']:.2f}"])
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--pairs", type=int, default=30, help="alternating pairs of step and floor (default 30)")
    parser.add_argument(
        "--precisions", nargs="+", choices=get_args(PrecisionName), default=["float32", "bfloat16"], help="as in a job"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    base, pairs = (replace(BASE, batch=16, size=16), 3) if options.quick else (BASE, options.pairs)
    result: Record = {**provenance(options.threads, options.device), "quick": options.quick, "precisions": {}}
    for precision in options.precisions:
        found = measure(replace(base, precision=precision), pairs)
        result["precisions"][precision] = found
        say(f"  {precision}: {found['step_seconds']} s, ÷ floor {found['floor_ratio']}")
    finish("distillation", result, describe(result), options)


if __name__ == "__main__":
    main()
