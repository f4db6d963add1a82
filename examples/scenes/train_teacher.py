"""Make the files of the scenes example: a teacher that labels every pixel, and scenes that it never saw.

Scenes are composed on the way, so that none is seen twice; the held-out ones are of digits that no training scene
has, a third of them larger than the teacher's input, as evaluation allows. The job gets ``teacher.safetensors`` only.

Run ``python examples/scenes/train_teacher.py`` in the development environment (it needs scikit-learn). The same seed
on the same machine and number of threads gives the same files.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # also where it is run from elsewhere

from scenes import NUM_CLASSES, SIZE, Scenes, compose, load_split

from distiller.evaluation import Evaluator
from shared.networks.building import build_network
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.weights import save_checkpoint
from shared.shards.image_codec import encode_image
from shared.shards.reader import iter_samples
from shared.specs import InputSpec, NetworkSpec
from shared.tasks.base import build_task

FOLDER = Path(__file__).parent
ARCH = "deeplab_small"
TASK = build_task("semantic-segmentation", NUM_CLASSES, 255)
# Mean and standard deviation of the training pixels, rounded; job.yaml repeats them.
INPUT = InputSpec(channels=1, height=SIZE, width=SIZE, mean=(0.255,), std=(0.17,))
HELD_OUT = ((100, (SIZE, SIZE)), (50, (80, 96)))
"""Scenes of each size."""


def train(*, steps: int, batch_size: int, learning_rate: float, seed: int) -> nn.Module:
    """SGD with Nesterov momentum, a tenth of the steps of warm-up, then a cosine to zero."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = build_network(NetworkSpec(arch=ARCH), num_classes=NUM_CLASSES, task=TASK.description.name, input=INPUT)
    network = network.to(memory_format=torch.channels_last)
    normalize = Normalization(INPUT)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    digits, _ = load_split()
    for step in range(1, steps + 1):
        scenes = compose(digits, batch_size, random)
        inputs = normalize(to_pixels(torch.from_numpy(scenes.images))).contiguous(memory_format=torch.channels_last)
        loss = _loss(network(inputs), torch.from_numpy(scenes.maps).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}/{steps}  loss of the last batch {loss.item():.4f}", flush=True)
    return network


def _loss(logits: Tensor, maps: Tensor) -> Tensor:
    return F.cross_entropy(logits, maps)


def write_tar(path: Path, parts: list[Scenes]) -> None:
    """A labeled WebDataset: ``KEY.png`` and ``KEY.seg.png``; the same scenes give the same bytes."""
    number = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for scenes in parts:
            for image, label in zip(scenes.images, scenes.maps, strict=True):
                members = {"png": encode_image(image, "png"), **TASK.labels.encode(label)}
                for extension, content in members.items():
                    member = tarfile.TarInfo(f"scene-{number:04d}.{extension}")  # its mtime is 0
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                number += 1


def measure(network: nn.Module, path: Path) -> float:
    """The network's mIoU on a tar."""
    samples = iter_samples([path], INPUT.shape, labels=TASK.labels, require_labels=True, any_size=True)
    device = torch.device("cpu")
    evaluator = Evaluator(samples, network, task=TASK, input=INPUT, batch_size=32, device=device)
    return evaluator.evaluate(network).metrics["student_miou"]


def main() -> None:
    """Train, measure on the tar as written, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for teacher.safetensors and held-out.tar")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "held-out.tar"
    _, digits = load_split()
    random = np.random.default_rng(1)  # the held-out scenes are data: another ``--seed`` trains on the same
    write_tar(path, [compose(digits, count, random, size) for count, size in HELD_OUT])
    network = train(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    miou = measure(network, path)
    recipe = {
        "architecture": ARCH,
        "data": "scenes of scikit-learn digits, composed on the way",
        "held_out_miou": f"{miou:.4f}",
        "input": INPUT.model_dump_json(),
        "recipe": f"SGD, Nesterov 0.9, weight decay 5e-4, lr {arguments.learning_rate} one-cycle, "
        f"{arguments.steps} steps of {arguments.batch_size}",
        "seed": str(arguments.seed),
    }
    save_checkpoint(network, arguments.output / "teacher.safetensors", recipe)
    print(f"mIoU {miou:.4f} on held-out scenes")


if __name__ == "__main__":
    main()
