"""How near whole synthesis rounds come to the hardware's limit: ``python -m benchmarks.synthesis --json``.

A round is what a worker does for one batch: the inner loop of Fast DFKD with the adversarial term, the
choice of the best images, the outer step, and the images on the host in 8 bits. It is measured in turn with
its *floor* (``benchmarks.floor``: the same convolutions and linear layers, forward and backward as needed,
and nothing else), so that a busy machine slows both alike. ``floor_ratio`` is the median over the pairs of
our time ÷ floor.

The setting is that of the paper's CIFAR runs at batch 64: wrn40_2 teacher, wrn16_1 student, 3×32×32 images,
5 inner steps, the default generator. The networks are freshly initialized, since what weights hold does not
change what they cost.

Also measured: peak memory, each in a process of its own; the cost by batch, steps, image size and teacher;
and what writing shards beside the inversion adds (``shard_writing``: blocks of rounds with and without it,
in turn, each block until its last shard is sealed).
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import torch
from torch import nn

from benchmarks.floor import Floor
from benchmarks.records import Cells, Record, command_line, finish, provenance, results_folder, say, spread, table
from shared.networks.building import build_network
from shared.networks.devices import choose_device
from shared.shards.format import SampleBatch
from shared.specs import FastMetaSynthesis, InputSpec, NetworkSpec
from shared.specs.precision import PrecisionName
from shared.storage import Storage
from shared.tasks.base import build_task
from synth_service.inversion import Setup, SyntheticBatch, build_inverter
from synth_service.inversion.generator_inverter import GeneratorInverter
from synth_service.synthesis.shard_writer import ShardWriter

NUM_CLASSES = 10
TASK = build_task("classification", NUM_CLASSES)
WRITING_LIMIT = 0.03


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    teacher: str = "wrn40_2"
    size: int = 32
    batch: int = 64
    steps: int = 5
    generator_width: int = 64
    student: str = "wrn16_1"
    precision: PrecisionName = "float32"
    generator: Literal["standard", "deep"] = "standard"


class Rounds:
    """An inverter that makes round after round of one setting."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        torch.manual_seed(0)
        self.setting = setting
        self.device = device
        shape = InputSpec(channels=3, height=setting.size, width=setting.size)
        teacher, student = (
            build_network(NetworkSpec(arch=arch), num_classes=NUM_CLASSES, input=shape).to(device)
            for arch in (setting.teacher, setting.student)
        )
        spec = FastMetaSynthesis(
            num_images=10**6,
            batch_size=setting.batch,
            steps=setting.steps,
            generator_width=setting.generator_width,
            generator=setting.generator,
        )
        inverter = build_inverter(spec, Setup(teacher, TASK, shape, seed=0, device=device, precision=setting.precision))
        assert isinstance(inverter, GeneratorInverter)
        inverter.use_student(student)
        self.inverter = inverter
        self.networks: tuple[nn.Module, ...] = (teacher, student, inverter.adapted)
        self.targets = TASK.targets(0, setting.batch)

    def one(self) -> SyntheticBatch:
        """A round; its images are on the host when it returns."""
        return self.inverter.invert(self.targets)

    def floor(self) -> Floor:
        """The floor of such rounds."""
        return Floor(self.networks, self.one, self.setting.steps)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of some work, to the end of it on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started


def measure_pairs(setting: Setting, device: torch.device, pairs: int) -> Record:
    """Rounds and their floor in turn, after both ran once."""
    rounds = Rounds(setting, device)
    floor = rounds.floor()
    floor.run()
    measured = []
    for _ in range(pairs):
        ours, least = rounds.seconds(rounds.one), rounds.seconds(floor.run)
        measured.append(
            {"ours_seconds": round(ours, 4), "floor_seconds": round(least, 4), "ratio": round(ours / least, 4)}
        )
        say(f"  round {ours:8.3f} s   floor {least:8.3f} s   ratio {ours / least:.3f}")
    seconds = median(pair["ours_seconds"] for pair in measured)
    return {
        "setting": asdict(setting),
        "round_seconds": seconds,
        "images_per_second": round(setting.batch / seconds, 3),
        "floor_images_per_second": round(setting.batch / median(pair["floor_seconds"] for pair in measured), 3),
        "floor_ratio": round(median(pair["ratio"] for pair in measured), 4),
        "floor_operations": floor.describe(),
        "pairs": measured,
    }


# Memory


def measure_memory(setting: Setting, device: torch.device, threads: int) -> Record:
    """Peak memory of two rounds in a fresh process. Two inner steps stand for all: later ones reuse their memory."""
    few_steps = replace(setting, steps=min(setting.steps, 2))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_peak_memory, few_steps, str(device), threads).result()


def _peak_memory(setting: Setting, device: str, threads: int) -> Record:
    torch.set_num_threads(threads)
    chosen = torch.device(device)
    before = _highest_resident_mib()
    rounds = Rounds(setting, chosen)
    rounds.one()
    rounds.one()
    if chosen.type == "cuda":
        return {"kind": "cuda", "peak_mib": round(torch.cuda.max_memory_allocated(chosen) / 2**20, 1)}
    return {"kind": "resident", "peak_mib": _highest_resident_mib(), "before_networks_mib": before}


def _highest_resident_mib() -> float:
    """Of this process alone: Linux lets ``ru_maxrss`` begin with the size of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 2**10, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


# Shard writing


class Writing:
    """Shards of one partition, written beside its rounds as a worker writes them."""

    def __init__(self, rounds: Rounds, folder: Path) -> None:
        self.rounds = rounds
        self._storage = Storage(str(folder))
        self._writer = ShardWriter[bytes](
            self._storage, "shards", folder / "scratch", job="benchmark", partition=0, attempt=1, image_format="png"
        )
        self._index = 0

    def close(self) -> None:
        """Ends the writer's thread."""
        self._writer.close()

    def submit(self, batch: SyntheticBatch, *, with_state: bool) -> None:
        """Hands over one shard, and what a successor would need."""
        buffer = io.BytesIO()
        if with_state:
            torch.save(self.rounds.inverter.state_dict(), buffer)
        first_image = self._index * len(batch.images)
        self._writer.submit(self._index, first_image, [samples(batch, self._index + 1)], buffer.getvalue())
        self._index += 1

    def collect(self, *, wait: bool) -> None:
        """Takes sealed shards and stores their states; announcing them is one round trip to Redis more."""
        for manifest, state in self._writer.sealed(block=wait):
            if state:
                self._storage.put_bytes(state, f"states/{manifest.index}")

    def block(self, count: int, *, with_state: bool) -> None:
        """Some rounds with writing, until the last shard is sealed."""
        for _ in range(count):
            self.submit(self.rounds.one(), with_state=with_state)
            self.collect(wait=False)
        self.collect(wait=True)


def measure_writing(setting: Setting, device: torch.device, pairs: int, rounds_per_block: int) -> Record:
    """What encoding and sealing shards adds to the rounds, and what keeping a resumable state adds on top."""
    rounds = Rounds(setting, device)
    batch = rounds.one()
    with tempfile.TemporaryDirectory(prefix="dfkd-benchmark-") as folder:
        writing = Writing(rounds, Path(folder))

        def nothing_else() -> None:
            for _ in range(rounds_per_block):
                rounds.one()

        def one_shard(with_state: bool) -> None:
            writing.submit(batch, with_state=with_state)
            writing.collect(wait=True)

        def alone(with_state: bool) -> float:
            return rounds.seconds(lambda: one_shard(with_state))

        alone(True)
        idle = {name: [alone(state) for _ in range(5)] for name, state in (("shard", False), ("with_state", True))}
        measured = []
        for _ in range(pairs):
            without = rounds.seconds(nothing_else)
            shards = rounds.seconds(lambda: writing.block(rounds_per_block, with_state=False))
            both = rounds.seconds(lambda: writing.block(rounds_per_block, with_state=True))
            seconds = {"without_seconds": without, "shards_seconds": shards, "shards_and_state_seconds": both}
            shares = {"added_share": shards / without - 1, "added_share_with_state": both / without - 1}
            measured.append({name: round(value, 4) for name, value in (seconds | shares).items()})
            say(
                f"  without {without:8.3f} s   shards {shards / without - 1:+.2%}   and state {both / without - 1:+.2%}"
            )
        writing.close()
    return {
        "added_share": round(median(pair["added_share"] for pair in measured), 4),
        "added_share_with_state": round(median(pair["added_share_with_state"] for pair in measured), 4),
        "limit": WRITING_LIMIT,
        "rounds_per_block": rounds_per_block,
        "round_seconds": round(median(pair["without_seconds"] for pair in measured) / rounds_per_block, 4),
        "seconds_alone": {name: spread(values) for name, values in idle.items()},
        "pairs": measured,
    }


def samples(batch: SyntheticBatch, round_number: int) -> SampleBatch:
    """What a worker hands to its writer."""
    return SampleBatch(
        images=batch.images.numpy(),
        targets=batch.targets.numpy(),
        described={name: values.numpy() for name, values in batch.described.items()},
        round=round_number,
        student_version=1,
    )


# The whole


def scaling_settings(base: Setting, *, quick: bool) -> dict[str, list[Setting]]:
    """One thing changed at a time; the base itself is in every list."""
    if quick:
        return {"batch": [replace(base, batch=base.batch // 2), base]}
    return {
        "batch": [replace(base, batch=batch) for batch in (16, 32, 64, 128)],
        "steps": [replace(base, steps=steps) for steps in (2, 5, 10)],
        "size": [replace(base, size=size) for size in (16, 32, 64)],
        "teacher": [replace(base, teacher=teacher) for teacher in ("wrn16_1", "wrn40_2", "vgg11", "resnet34")],
    }


def measure_scaling(
    settings: dict[str, list[Setting]], device: torch.device, threads: int, pairs: int, cells: Cells
) -> dict[str, list[Record]]:
    """Time, floor and memory of every setting; one that is in several lists is measured once."""

    def measured(point: Setting) -> Record:
        key = {"label": f"{point.teacher}-{point.size}-{point.batch}-{point.steps}", "seed": 0, **asdict(point)}
        key |= {"pairs": pairs, "threads": threads, "device": str(device)}
        if (cell := cells.find(key)) is None:
            say(str(point))
            found = measure_pairs(point, device, pairs)
            kept = ("setting", "round_seconds", "images_per_second", "floor_ratio")
            cell = {name: found[name] for name in kept} | {"memory": measure_memory(point, device, threads)}
            cells.store(key, {"point": cell})
            return cell
        point_of_cell: Record = cell["point"]
        return point_of_cell

    return {name: [measured(point) for point in points] for name, points in settings.items()}


def describe(result: Record) -> str:
    """The result for people."""
    rows = [["setting", "s/round", "images/s", "÷ floor", "peak MiB"]]
    for name, points in result["scaling"].items():
        rows += [
            [
                f"{name} {point['setting'][name]}",
                f"{point['round_seconds']:.3f}",
                f"{point['images_per_second']:.2f}",
                f"{point['floor_ratio']:.3f}",
                f"{point['memory']['peak_mib']:.0f}",
            ]
            for point in points
        ]
    writing = result["shard_writing"]
    return (
        f"{table(rows)}\n\n"
        f"{result['images_per_second']:.2f} images/s; floor_ratio {result['floor_ratio']:.3f}; "
        f"peak memory {result['memory']['peak_mib']:.0f} MiB\n"
        f"writing shards adds {writing['added_share']:+.2%}, the resumable state with it "
        f"{writing['added_share_with_state']:+.2%}"
    )


def run(base: Setting, options: argparse.Namespace) -> Record:
    """Everything, in the order of importance."""
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    about = provenance(options.threads, options.device)
    say(f"rounds and floor in turn: {base}")
    result = {**about, "quick": options.quick, **measure_pairs(base, device, options.pairs)}
    result["memory"] = measure_memory(base, device, options.threads)
    say("with and without writing shards")
    result["shard_writing"] = measure_writing(base, device, options.pairs, rounds_per_block=1 if options.quick else 2)
    settings = scaling_settings(base, quick=options.quick)
    cells = Cells(results_folder(options) / "synthesis-cells", fresh=options.fresh)
    result["scaling"] = measure_scaling(settings, device, options.threads, 1 if options.quick else 2, cells)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs of round and floor (default 5)")
    parser.add_argument("--teacher", default="wrn40_2", help="the network to invert (default wrn40_2)")
    parser.add_argument("--student", default="wrn16_1", help="what the adversarial term is against (default wrn16_1)")
    parser.add_argument("--precision", choices=get_args(PrecisionName), default="float32", help="as in the job file")
    options = parser.parse_args(arguments)
    base = Setting(teacher=options.teacher, student=options.student, precision=options.precision)
    if options.quick:
        base = replace(base, batch=16, steps=2)
    result = run(base, options)
    finish("synthesis", result, describe(result), options)


if __name__ == "__main__":
    main()
