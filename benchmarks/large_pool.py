"""A pool that memory does not hold: what it takes of memory, and what reading it takes of a step.

Writes a set of JPEG images of 3×224×224 into shards, fills the distiller's pool from them with a limit of memory, and
trains a student from the pool. ``loading_share`` is the time to draw a batch with nothing read ahead, as a share of a
step from a batch that is already in memory.

The images are a few hundred different ones, repeated: nothing here depends on what they show.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torchvision.models import get_model

from benchmarks.records import Record, command_line, finish, provenance, say, table
from distiller.pool import ImagePool
from distiller.sources import READ_BYTES
from distiller.trainer import Trainer
from shared.networks.devices import choose_device
from shared.shards.format import SampleBatch, write_shard
from shared.shards.image_codec import Pixels
from shared.shards.reader import iter_samples
from shared.specs import AugmentationSpec, DistillationSpec, InputSpec
from shared.tasks.base import build_task

SHAPE = (3, 224, 224)
IMAGES_PER_SHARD = 1000
DIFFERENT = 200


def pictures(count: int) -> Pixels:
    """Smooth random images, which take about as much room as photographs."""
    random = np.random.default_rng(0)
    coarse = random.normal(size=(count, 3, 28, 28)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=SHAPE[1:], mode="bicubic")
    fine = torch.from_numpy(random.normal(scale=0.1, size=(count, *SHAPE)).astype(np.float32))
    result: Pixels = ((smooth + fine) * 50 + 128).clamp(0, 255).byte().numpy()
    return result


def write_shards(folder: Path, images: int) -> list[Path]:
    """Shards of as many images."""
    shown = pictures(DIFFERENT)
    paths = []
    for index in range(-(-images // IMAGES_PER_SHARD)):
        count = min(IMAGES_PER_SHARD, images - index * IMAGES_PER_SHARD)
        targets = np.arange(count)
        batch = SampleBatch(shown[targets % DIFFERENT], targets, {"teacher_top1": targets}, 1, 0)
        path, _ = write_shard(
            folder,
            [batch],
            job="b" * 32,
            partition=0,
            index=index,
            attempt=1,
            first_image=index * IMAGES_PER_SHARD,
            image_format="jpg",
            created_at=0.0,
        )
        paths.append(path)
    return paths


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def steps_of(trainer: Trainer, batches: Iterator[torch.Tensor], count: int) -> float:
    """Seconds a step."""
    trainer.step(next(batches))
    trainer.metrics()
    started = time.perf_counter()
    for _ in range(count):
        trainer.step(next(batches))
    trainer.metrics()
    return (time.perf_counter() - started) / count


def measure(images: int, memory_bytes: int, steps: int, batch_size: int, device: torch.device, folder: Path) -> Record:
    """All numbers of one run."""
    say(f"writing {images:,} images")
    with get_context("spawn").Pool(1) as process:  # so that its memory is not ours
        paths = process.apply(write_shards, (folder / "shards", images))
    empty = peak_bytes()
    pool = ImagePool(
        images, SHAPE, device, memory_bytes=memory_bytes, folder=folder, disk_bytes=images * int(np.prod(SHAPE))
    )
    say("filling the pool")
    started = time.perf_counter()
    for samples in iter_samples(paths, SHAPE, batch_size=READ_BYTES // int(np.prod(SHAPE)), read_labels=False):
        pool.add(torch.from_numpy(samples.images))
    filling = time.perf_counter() - started
    filled = peak_bytes()
    spec = DistillationSpec(
        steps=10 * steps,
        batch_size=batch_size,
        optimizer="adamw",
        mix="cutmix",
        procedural_share=0.0,
        augmentation=AugmentationSpec(resized_crop_scale=0.08),
    )
    random = torch.Generator().manual_seed(0)
    reads = []
    for _ in range(20):
        started = time.perf_counter()
        pool.sample(batch_size, random)
        reads.append(time.perf_counter() - started)
    say("training")
    teacher, student = get_model("resnet18"), get_model("mobilenet_v3_small")
    input, task = InputSpec(height=224, width=224), build_task("classification", 1000)
    trainer = Trainer(spec, student, teacher, task=task, input=input, seed=0, device=device)
    one = pool.sample(batch_size, random)
    without, with_pool = [], []
    for _ in range(3):
        without.append(steps_of(trainer, iter(lambda: one, None), steps))
        with_pool.append(steps_of(trainer, iter(lambda: pool.sample(batch_size, random), None), steps))
    pool.close()
    return {
        "images": images,
        "pool_bytes": images * int(np.prod(SHAPE)),
        "memory_limit_bytes": memory_bytes,
        "pool_memory_bytes": pool.nbytes,
        "rss_before_bytes": empty,
        "rss_filled_bytes": filled,
        "decoding_images_per_second": round(images / filling, 1),
        "read_seconds_per_batch": round(float(np.median(reads)), 4),
        "seconds_per_step_from_memory": round(min(without), 4),
        "seconds_per_step_from_pool": round(min(with_pool), 4),
        # At most: the next batch is read while the step computes.
        "loading_share": round(float(np.median(reads)) / min(without), 4),
    }


def describe(record: Record) -> str:
    """A table for people."""
    return table([["what", "value"], *([name, f"{value:,}"] for name, value in record.items() if name != "provenance")])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, help="in the pool (default 20,000)")
    parser.add_argument("--memory-bytes", type=int, help="most memory of the pool (default 1 GiB)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="of each of three pairs of measurements")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    images = options.images or (200 if options.quick else 20_000)
    memory_bytes = options.memory_bytes or (2 * 2**20 if options.quick else 2**30)
    batch_size, steps = (4, 1) if options.quick else (options.batch_size, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(images, memory_bytes, steps, batch_size, choose_device(options.device), Path(folder))
    result["provenance"] = provenance(options.threads, options.device)
    finish("large_pool", result, describe(result), options)


if __name__ == "__main__":
    main()
