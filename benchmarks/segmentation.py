"""Segmentation on real scenes: a teacher trained on CamVid, then students that never see a real image.

`python -m benchmarks.segmentation --data ../shared/data --json`. The teacher is trained once and kept; data-free
students are made by `fast-meta` and by `dfad` within the same wall time, and a student on the teacher's own images
shows what real data would give. Everything is measured on CamVid's test scenes at 120×160, while the networks were
trained at 96×128. Of each student it is the last one that is measured, never the best. Cells are kept one by one, so an
interrupted run goes on with what is missing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.records import Cells, Record, command_line, finish, provenance, results_folder, say, spread, table
from distiller.evaluation import Evaluator
from distiller.pool import ImagePool
from distiller.trainer import Trainer
from shared import seeds
from shared.networks.building import build_network
from shared.networks.devices import choose_device
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.weights import load_checkpoint, save_checkpoint
from shared.shards.reader import Samples, iter_samples
from shared.specs import METHODS, DistillationSpec, InputSpec, NetworkSpec, SynthesisBase
from shared.specs.precision import PrecisionName
from shared.tasks.base import build_task
from shared.tasks.descriptions import SEMANTIC_SEGMENTATION
from synth_service.inversion import Setup, build_inverter

TASK = build_task("semantic-segmentation", 11, 255)
INPUT = InputSpec(height=96, width=128, mean=(0.41, 0.42, 0.43), std=(0.3, 0.31, 0.3))
TEACHER = NetworkSpec(arch="deeplab", kwargs={"width": 24})
STUDENT = NetworkSpec(arch="deeplab_small")
PRECISION: PrecisionName = "auto"
"""As in a job."""

GOAL = 0.71
"""The paper's ratio on NYUv2: 0.366 of 0.517."""

KD = {"batch_size": 16, **dict(SEMANTIC_SEGMENTATION.distillation_defaults), "augmentation": {"crop_padding": 4}}
"""The task's own defaults."""

METHODS_COMPARED: dict[str, dict[str, Any]] = {
    "fast-meta": {
        "synthesis": {
            "method": "fast-meta",
            "batch_size": 16,
            "steps": 5,
            "generator": "dcgan",
            "generator_width": 32,
            "latent_learning_rate": 0.1,
            "generator_learning_rate": 5e-3,
            "one_hot": 1.0,
            "balance": 1.0,
            "reset_first_layer_at_batch": None,
            "augmentation": {"crop_padding": 4},
        },
        "distillation": {**KD, "temperature": 2.0},
        "batches": 1,
        "steps": 10,
        "pool": 100_000,
    },
    "dfad": {
        "synthesis": {"method": "dfad", "batch_size": 16, "generator_width": 32},
        "distillation": {
            "batch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 5e-5,
            "procedural_share": 0.0,
            "loss": "l1",
            "augmentation": {"crop_padding": 0, "horizontal_flip": False},
        },
        "batches": 5,
        "steps": 5,
        "pool": 16,  # each batch is trained on once, as published
    },
}
"""Of an iteration: batches made, and distillation steps, spread over them."""


def samples_of(data: Path, part: str) -> list[Samples]:
    """All labeled scenes of a part of CamVid."""
    path = data / f"camvid-{part}.tar"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; name the folder of real data with --data")
    return list(iter_samples([path], INPUT.shape, labels=TASK.labels, require_labels=True, any_size=True))


def evaluator_of(data: Path, teacher: nn.Module, device: torch.device) -> Evaluator:
    """On the test scenes."""
    test = samples_of(data, "test")
    return Evaluator(test, teacher, task=TASK, input=INPUT, batch_size=16, device=device)


def network_of(spec: NetworkSpec, seed: int) -> nn.Module:
    """A fresh network."""
    with seeds.seeded_globally(seed, seeds.STUDENT):
        return build_network(spec, num_classes=11, task=TASK.description.name, input=INPUT)


def train_teacher(data: Path, steps: int, device: torch.device) -> nn.Module:
    """SGD on random crops of the training scenes, half of them mirrored; focal loss (gamma 2), as DFAD's teachers."""
    network = network_of(TEACHER, 0).to(device).train()
    network.to(memory_format=torch.channels_last)
    parts = samples_of(data, "train")
    images = torch.from_numpy(np.concatenate([part.images for part in parts]))
    labels = torch.from_numpy(np.concatenate([part.targets for part in parts])).long()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False)
    random, normalize = seeds.generator(0, seeds.TRAINING), Normalization(INPUT).to(device)
    for step in range(steps):
        chosen, maps = crops(images, labels, 16, random)
        inputs = normalize(to_pixels(chosen.to(device))).contiguous(memory_format=torch.channels_last)
        entropy = F.cross_entropy(network(inputs), maps.to(device), reduction="none", ignore_index=255)
        loss = ((1 - (-entropy).exp()).square() * entropy).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            say(f"teacher: step {step + 1} of {steps}, loss {loss.item():.4f}")
    network.eval()
    return network


def crops(images: Tensor, labels: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scenes and their maps at the input's size; the whole batch is cut at one place and mirrored or not."""
    chosen = torch.randint(len(images), (count,), generator=random)
    top, left = (
        int(torch.randint(whole - part + 1, (), generator=random))
        for whole, part in zip(images.shape[2:], (INPUT.height, INPUT.width), strict=True)
    )
    place = np.s_[..., top : top + INPUT.height, left : left + INPUT.width]
    cut, maps = images[chosen][place], labels[chosen][place]
    return (cut.flip(-1), maps.flip(-1)) if torch.rand((), generator=random) < 0.5 else (cut, maps)


def distil_data_free(teacher: nn.Module, settings: Mapping[str, Any], device: torch.device) -> tuple[nn.Module, Record]:
    """A student by synthesis and distillation in turn, in as many iterations as fit into the wall time."""
    method, seed = settings["method"], settings["seed"]
    spec: SynthesisBase = METHODS[method["synthesis"]["method"]].model_validate(
        {"num_images": 1, **method["synthesis"]}
    )
    setup = Setup(teacher, TASK, INPUT, seeds.partition_seed(seed), device, PRECISION)

    def iterations(count: int, steps: int) -> tuple[nn.Module, float]:
        student = network_of(STUDENT, seed).to(device)
        distillation = DistillationSpec.model_validate({**method["distillation"], "steps": steps})
        trainer = Trainer(
            distillation,
            student,
            teacher,
            task=TASK,
            input=INPUT,
            seed=seed,
            device=device,
            precision=PRECISION,
        )
        pool, inverter = ImagePool(method["pool"], INPUT.shape, device), build_inverter(spec, setup)
        sampling = seeds.generator(seed, seeds.SAMPLING)
        started = time.perf_counter()
        for _ in range(count):
            for _ in range(method["batches"]):
                pool.add(inverter.invert(TASK.targets(pool.images_seen, spec.batch_size)).images)
                for _ in range(method["steps"] // method["batches"]):
                    trainer.step(pool.sample(distillation.batch_size, sampling))
                inverter.use_student(student)
        trainer.metrics()  # waits for the device
        return student, time.perf_counter() - started

    _, warm = iterations(3, 3 * method["steps"])
    count = max(1, round(3 * settings["seconds"] / warm))
    student, seconds = iterations(count, count * method["steps"])
    images = count * method["batches"] * spec.batch_size
    return student, {"seconds": round(seconds, 1), "images": images, "kd_steps": count * method["steps"]}


def distil_real(
    teacher: nn.Module, data: Path, settings: Mapping[str, Any], device: torch.device
) -> tuple[nn.Module, Record]:
    """The same student on the teacher's own training scenes: the ceiling."""
    student = network_of(STUDENT, settings["seed"]).to(device)
    fields = {**METHODS_COMPARED["fast-meta"]["distillation"], "steps": settings["steps"]}
    spec = DistillationSpec.model_validate(fields)
    seed = settings["seed"]
    trainer = Trainer(spec, student, teacher, task=TASK, input=INPUT, seed=seed, device=device, precision=PRECISION)
    images = torch.from_numpy(np.concatenate([part.images for part in samples_of(data, "train")]))
    random = seeds.generator(settings["seed"], seeds.SAMPLING)
    started = time.perf_counter()
    for _ in range(settings["steps"]):
        trainer.step(crops(images, images[:, 0].long(), spec.batch_size, random)[0])
    trainer.metrics()
    return student, {"seconds": round(time.perf_counter() - started, 1), "kd_steps": settings["steps"]}


def measure(options: argparse.Namespace) -> Record:
    """All cells, and the result made of them."""
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    folder = results_folder(options)
    cells = Cells(folder / "segmentation-cells", fresh=options.fresh)
    seconds, teacher_steps, real_steps = (20, 30, 20) if options.quick else (600, 1500, 1500)
    teacher = cached_teacher(options.data, options.cache, teacher_steps, device)
    evaluator = evaluator_of(options.data, teacher, device)
    found: dict[str, list[Record]] = {}

    def cell(settings: dict[str, Any], work: Callable[[], tuple[nn.Module, Record]]) -> None:
        stored = cells.find(settings)
        if stored is None:
            student, told = work()
            evaluation = evaluator.evaluate(student)
            metrics = {name: round(value, 5) for name, value in evaluation.metrics.items()}
            stored = {**metrics, **told, "student_class_iou": evaluation.details["student_class_iou"]}
            cells.store(settings, stored)
        say(f"{settings['label']} seed {settings['seed']}: mIoU {stored['student_miou']:.4f} in {stored['seconds']} s")
        found.setdefault(settings["label"], []).append(stored)

    for seed in range(1 if options.quick else options.seeds):
        for label, method in METHODS_COMPARED.items():
            settings = {"label": label, "seed": seed, "seconds": seconds, "method": method, "teacher": teacher_steps}
            cell(settings, lambda s=settings: distil_data_free(teacher, s, device))  # type: ignore[misc]
    real = {"label": "real images", "seed": 0, "steps": real_steps, "teacher": teacher_steps}
    cell(real, lambda: distil_real(teacher, options.data, real, device))

    teacher_miou = found["real images"][0]["teacher_miou"]
    students = {label: spread([each["student_miou"] for each in group], 4) for label, group in found.items()}
    ratio = statistics.median(each["student_miou"] for each in found["fast-meta"]) / max(teacher_miou, 1e-9)
    return {
        **provenance(options.threads, options.device),
        "teacher_miou": teacher_miou,
        "student_miou": students,
        "ratio": round(ratio, 4),
        "goal": GOAL,
        "reaches_goal": ratio >= GOAL,
        "above_dfad": students["fast-meta"]["median"] > students["dfad"]["median"],
        "cells": found,
    }


def cached_teacher(data: Path, cache: Path, steps: int, device: torch.device) -> nn.Module:
    """The teacher, trained unless it lies in the cache."""
    path = cache / f"camvid-teacher-{steps}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        save_checkpoint(train_teacher(data, steps, device), path, {"steps": str(steps)})
    network = network_of(TEACHER, 0)
    load_checkpoint(network, path, field="teacher")
    return network.to(device).eval()


def main() -> None:
    """Measure, keep, and print."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid-train.tar and camvid-test.tar")
    parser.add_argument("--seeds", type=int, default=3, help="students of each method (default 3)")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks-cache"), help="folder for the trained teacher")
    options = parser.parse_args()
    result = measure(options)
    rows = [["", "mIoU", "min–max", "of the teacher"]]
    rows.append(["teacher", f"{result['teacher_miou']:.4f}", "", "1.00"])
    for label, row in result["student_miou"].items():
        share = row["median"] / max(result["teacher_miou"], 1e-9)
        rows.append([label, f"{row['median']:.4f}", f"{row['min']:.4f}–{row['max']:.4f}", f"{share:.2f}"])
    finish("segmentation", result, table(rows), options)


if __name__ == "__main__":
    main()
