"""Everything about speed that only a GPU can tell, in one command: ``python -m benchmarks.gpu --json``, or ``--quick``
(three minutes on a data-center GPU).

The paper's settings at their own batch sizes: seconds for a synthesis round and a KD step by CUDA events, each ÷ its
floor (``benchmarks.floor``: convolutions and linear layers alone, in the same precision), what the host waits for in a
round, peak memory, and the hours that 50,000 images would take beside the paper's. Then the first setting in every
precision, with TF32 and with torch.compile; and DeepInversion by the step.

It runs to its end on a CPU, too, where it says little: ``--tiny`` cuts networks and images down for that. A case that
fails, for want of memory say, is in the result with its error, and the others go on.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.floor import Floor
from benchmarks.records import Record, command_line, finish, provenance, say, table
from benchmarks.synthesis import NUM_CLASSES, TASK, Rounds, Setting
from distiller.trainer import Trainer
from shared.networks.building import build_network
from shared.networks.devices import choose_device
from shared.networks.precision import choose_precision
from shared.specs import DeepInversionSynthesis, DistillationSpec, InputSpec, NetworkSpec
from synth_service.inversion import Setup, build_inverter

PAPER_IMAGES = 50_000
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "aten::item")
"""What a profile calls it when the host waits for the device."""


@dataclass(frozen=True)
class Case:
    """A setting of the paper, and the hours of synthesis and distillation that its table 2 gives for it."""

    name: str
    setting: Setting
    paper_hours: float | None = None


CIFAR = Setting(batch=256, precision="auto")
RESNETS = replace(CIFAR, teacher="resnet34", student="resnet18")
CASES = [
    Case("wrn40_2 → wrn16_1, Fast-5", CIFAR),
    Case("wrn40_2 → wrn16_1, Fast-2", replace(CIFAR, steps=2), 0.03),
    Case("wrn40_2 → wrn16_1, Fast-10", replace(CIFAR, steps=10)),
    Case("resnet34 → resnet18, Fast-2", replace(RESNETS, steps=2), 0.06),
    Case("resnet34 → resnet18, Fast-5", RESNETS, 0.14),
    Case("resnet34 → resnet18, Fast-10", replace(RESNETS, steps=10)),
    Case(
        "resnet50 at 224, Fast-50",
        Setting(
            teacher="torchvision:resnet50",
            student="torchvision:resnet50",
            size=224,
            batch=100,
            steps=50,
            precision="auto",
            generator="deep",
        ),
    ),
]


def tiny(case: Case) -> Case:
    """The same with networks and images of a size that a CPU has done in a second."""
    small = replace(case.setting, teacher="resnet8", student="resnet8", size=16, batch=8, steps=2, generator_width=8)
    return replace(case, setting=small)


@dataclass(frozen=True)
class Counts:
    """How often each thing is done."""

    warm_up: int = 3
    rounds: int = 10
    steps: int = 50


class Clock:
    """Seconds on a device: by CUDA events where there are such, by the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one piece of work, to its end on the device."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self._device)
        return float(begin.elapsed_time(end)) / 1000

    def in_turn(self, works: Sequence[Callable[[], object]], warm_up: int, count: int) -> list[float]:
        """Median seconds of each, measured in turn so that clocks and heat are alike for all."""
        for _ in range(warm_up):
            for work in works:
                work()
        taken = [[self.seconds(work) for work in works] for _ in range(count)]
        return [median(column) for column in zip(*taken, strict=True)]


def waits(work: Callable[[], object], device: torch.device) -> dict[str, int]:
    """How often the host waits for the device in a piece of work."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiled:
        work()
    found: Counter[str] = Counter()
    for event in profiled.events() or []:
        for name in WAITS:
            if event.name.startswith(name):
                found[name] += 1
    return dict(found)


def trainer_of(setting: Setting, device: torch.device) -> Trainer:
    """The KD half of a setting."""
    shape = InputSpec(channels=3, height=setting.size, width=setting.size)
    teacher, student = (
        build_network(NetworkSpec(arch=arch), num_classes=NUM_CLASSES, input=shape)
        for arch in (setting.teacher, setting.student)
    )
    spec = DistillationSpec(steps=1_000_000, batch_size=setting.batch, procedural_share=0.0)
    return Trainer(spec, student, teacher, task=TASK, input=shape, seed=0, device=device, precision=setting.precision)


@contextmanager
def memory(device: torch.device) -> Iterator[Record]:
    """Peak memory of what is done meanwhile; None on a CPU, whose processes share theirs."""
    found: Record = {"peak_mib": None}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)


def measure_case(setting: Setting, device: torch.device, counts: Counts, *, compiled: bool = False) -> Record:
    """Rounds and KD steps of one setting."""
    clock = Clock(device)
    with memory(device) as of_rounds:
        rounds = Rounds(setting, device)
        if compiled:
            rounds.inverter.compile_networks()
            rounds.inverter.use_student(rounds.inverter.objective.student)
            rounds.one()
        works: list[Callable[[], object]] = [rounds.one] + ([] if compiled else [rounds.floor().run])
        seconds, *floor = clock.in_turn(works, counts.warm_up, counts.rounds)
        waited = waits(rounds.one, device)
    del rounds, works
    with memory(device) as of_steps:
        trainer = trainer_of(setting, device)
        batch = torch.randint(0, 256, (setting.batch, 3, setting.size, setting.size), dtype=torch.uint8)
        if device.type == "cuda":
            batch = batch.pin_memory()

        def step() -> None:
            trainer.step(batch)

        step_floor = Floor((trainer.teacher, trainer.student), step, 1)
        step_seconds, step_least = clock.in_turn([step, step_floor.run], counts.warm_up, counts.steps)
        step_waited = waits(step, device)
    return {
        "setting": asdict(setting),
        "precision": str(choose_precision(setting.precision, device)),
        "compiled": compiled,
        "round_seconds": round(seconds, 5),
        "images_per_second": round(setting.batch / seconds, 2),
        "round_floor_ratio": round(seconds / floor[0], 3) if floor else None,
        "round_waits": waited,
        "round_peak_mib": of_rounds["peak_mib"],
        "hours_for_50000_images": round(PAPER_IMAGES / setting.batch * seconds / 3600, 4),
        "step_seconds": round(step_seconds, 5),
        "step_floor_ratio": round(step_seconds / step_least, 3),
        "step_waits": step_waited,
        "step_peak_mib": of_steps["peak_mib"],
    }


def measure_deep_inversion(setting: Setting, device: torch.device, steps: int) -> Record:
    """Seconds of one of DeepInversion's 2,000 steps a batch."""
    shape = InputSpec(channels=3, height=setting.size, width=setting.size)
    teacher, student = (
        build_network(NetworkSpec(arch=arch), num_classes=NUM_CLASSES, input=shape).to(device)
        for arch in (setting.teacher, setting.student)
    )
    spec = DeepInversionSynthesis(num_images=setting.batch, batch_size=setting.batch, steps=steps)
    inverter = build_inverter(spec, Setup(teacher, TASK, shape, seed=0, device=device, precision=setting.precision))
    inverter.use_student(student)
    targets = torch.arange(setting.batch) % NUM_CLASSES
    inverter.invert(targets)
    seconds = Clock(device).seconds(lambda: inverter.invert(targets)) / steps
    return {
        "setting": asdict(setting),
        "step_seconds": round(seconds, 5),
        "hours_for_50000_images_of_2000_steps": round(PAPER_IMAGES / setting.batch * 2000 * seconds / 3600, 3),
        "paper_hours": 16.9,
    }


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products may be rounded to TF32 on their way in."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def guarded(name: str, measure: Callable[[], Record]) -> Record:
    """A measurement, or why there is none."""
    say(name)
    try:
        found = measure()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    say(f"  { ({key: value for key, value in found.items() if key != 'setting'}) }")
    return found


def measure(cases: Sequence[Case], device: torch.device, counts: Counts, *, compiles: bool) -> Record:
    """Everything, in the order of importance."""
    result: Record = {"cases": [], "variants": {}}
    for case in cases:
        found = guarded(case.name, lambda case=case: measure_case(case.setting, device, counts))  # type: ignore[misc]
        result["cases"].append({"name": case.name, "paper_hours": case.paper_hours, **found})
    base = cases[0].setting
    for name, precision, allowed in (
        ("float32", "float32", False),
        ("tf32", "float32", True),
        ("bfloat16", "bfloat16", False),
        ("float16", "float16", False),
    ):
        setting = replace(base, precision=precision)  # type: ignore[arg-type]
        with tf32(allowed):
            result["variants"][name] = guarded(name, lambda s=setting: measure_case(s, device, counts))  # type: ignore[misc]
    if compiles:
        compiled = guarded("compiled", lambda: measure_case(base, device, counts, compiled=True))
        result["variants"]["compiled"] = compiled
    steps = 2 if counts.rounds < Counts().rounds else 20
    result["deep_inversion"] = guarded("DeepInversion", lambda: measure_deep_inversion(base, device, steps))
    return result


def describe(result: Record) -> str:
    """The tables for people."""
    rows = [["setting", "s/round", "÷ floor", "images/s", "MiB", "h for 50,000", "paper, h", "s/KD step", "÷ floor"]]
    variants: dict[str, Any] = result["variants"]
    for each in [*result["cases"], *({"name": name, **found} for name, found in variants.items())]:
        if "error" in each:
            rows.append([each["name"], each["error"][:40], *[""] * 7])
            continue
        values = (
            each["round_seconds"],
            each["round_floor_ratio"],
            each["images_per_second"],
            each["round_peak_mib"],
            each["hours_for_50000_images"],
            each.get("paper_hours"),
            each["step_seconds"],
            each["step_floor_ratio"],
        )
        rows.append([each["name"], *("-" if value is None else f"{value:g}" for value in values)])
    deep = result["deep_inversion"]
    return f"{table(rows)}\n\nDeepInversion: {deep.get('step_seconds', deep.get('error'))} s a step"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser: argparse.ArgumentParser = command_line(__doc__)
    parser.add_argument("--tiny", action="store_true", help="small networks and images, to try the command on a CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    counts = Counts(warm_up=1, rounds=3, steps=10) if options.quick else Counts()
    cases = [CASES[0], CASES[3]] if options.quick else CASES
    if options.tiny:
        cases, counts = [tiny(case) for case in cases], Counts(warm_up=1, rounds=1, steps=2)
    about = provenance(options.threads, options.device)
    compiles = not (options.no_compile or options.quick)
    result = {**about, "quick": options.quick, "tiny": options.tiny}
    result |= measure(cases, device, counts, compiles=compiles)
    name = about["machine"]["gpu"] or "cpu"
    finish(f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}", result, describe(result), options)


if __name__ == "__main__":
    main()
