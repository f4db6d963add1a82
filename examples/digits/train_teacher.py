"""Make the files of the digits example: a teacher, the digits it never saw, in the forms a job takes.

scikit-learn ships 1,797 real handwritten digits of 8×8 pixels, so nothing is downloaded. They are enlarged
to 16×16, split by class into 1,347 for training and 450 held out, and a ResNet-20 learns the former. The
job gets ``teacher.safetensors`` only; ``held-out.tar`` is for measuring.

Run ``python examples/digits/train_teacher.py`` in the development environment (it needs scikit-learn).
The same seed on the same machine and number of threads gives the same files.
"""

import argparse
import io
import math
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from shared.networks.building import build_network
from shared.networks.weights import save_checkpoint
from shared.shards.image_codec import encode_image
from shared.shards.reader import iter_samples
from shared.specs import InputSpec, NetworkSpec
from shared.tasks.labels import ClassNumbers

FOLDER = Path(__file__).parent
ARCH = "resnet20"
SIZE = 16
HELD_OUT = 450
SPLIT_SEED = 0
"""The split is part of the data: another ``--seed`` trains another teacher on the same digits."""
# Mean and standard deviation of the training pixels, rounded; job.yaml repeats them.
INPUT = InputSpec(channels=1, height=SIZE, width=SIZE, mean=(0.305,), std=(0.318,))


class Digits(NamedTuple):
    """Images (N, 1, 16, 16) uint8 and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_split() -> tuple[Digits, Digits]:
    """The training and the held-out digits, each class in the same proportion in both."""
    data = load_digits()
    small = torch.from_numpy(data.images)[:, None] / 16  # (N, 1, 8, 8) in [0, 1]
    large = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).numpy()
    train, held_out = train_test_split(
        np.arange(len(images)), test_size=HELD_OUT, stratify=data.target, random_state=SPLIT_SEED
    )
    return Digits(images[train], data.target[train]), Digits(images[held_out], data.target[held_out])


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """8-bit images as float32 in [0, 1]."""
    return torch.from_numpy(images).float() / 255


def normalize(images: Tensor) -> Tensor:
    """What the network takes, from pixels (N, 1, H, W) in [0, 1]."""
    return (images - INPUT.mean[0]) / INPUT.std[0]


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10°, scaled by up to 10% and shifted by up to 1.5 pixels; outside is ink-free."""
    count, _, _, width = images.shape
    angle, scale, right, down = (torch.rand(4, count, generator=generator) * 2 - 1).unbind()
    angle, scale = angle * math.radians(10), 1 + 0.1 * scale
    right, down = right * 1.5 * 2 / width, down * 1.5 * 2 / width  # affine_grid counts in half widths
    rows = (scale * angle.cos(), -scale * angle.sin(), right, scale * angle.sin(), scale * angle.cos(), down)
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(digits: Digits, *, epochs: int, batch_size: int, learning_rate: float, seed: int) -> nn.Module:
    """SGD with Nesterov momentum, a tenth of the steps of warm-up, then a cosine to zero."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = build_network(NetworkSpec(arch=ARCH), num_classes=10, input=INPUT)
    images, labels = pixels(digits.images), torch.from_numpy(digits.labels)
    steps_per_epoch = len(images) // batch_size
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.1, cycle_momentum=False
    )
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(batch_size)[:steps_per_epoch]:
            logits = network(normalize(distort(images[batch], generator)))
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:3d}/{epochs}  loss of the last batch {loss.item():.4f}", flush=True)
    return network


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    """Top-1 in eval mode."""
    predicted = network.eval()(normalize(pixels(digits.images))).argmax(1).numpy()
    return float((predicted == digits.labels).mean())


def write_tar(path: Path, digits: Digits) -> None:
    """A labelled WebDataset: ``KEY.png`` in 8-bit gray and ``KEY.cls``; the same digits give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
            for extension, content in (("png", encode_image(image, "png")), ("cls", b"%d" % label)):
                member = tarfile.TarInfo(f"digit-{index:04d}.{extension}")  # its mtime is 0
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_tar(path: Path) -> Digits:
    """All samples of a tar."""
    images, targets = zip(*iter_samples([path], INPUT.shape, labels=ClassNumbers(10), require_labels=True), strict=True)
    return Digits(np.concatenate(images), np.concatenate(targets))


def main() -> None:
    """Train, measure on the tar as written, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for teacher.safetensors and held-out.tar")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    arguments = parser.parse_args()

    training, held_out = load_split()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_tar(arguments.output / "held-out.tar", held_out)
    network = train(
        training,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    top1 = accuracy(network, read_tar(arguments.output / "held-out.tar"))
    recipe = {
        "architecture": ARCH,
        "data": f"scikit-learn digits, bilinear to {SIZE}x{SIZE}, {len(training.labels)} for training",
        "held_out_top1": f"{top1:.4f} of {HELD_OUT}",
        "input": INPUT.model_dump_json(),
        "recipe": f"SGD, Nesterov 0.9, weight decay 5e-4, lr {arguments.learning_rate} one-cycle, "
        f"{arguments.epochs} epochs of {arguments.batch_size}, affine distortion",
        "seed": str(arguments.seed),
    }
    save_checkpoint(network, arguments.output / "teacher.safetensors", recipe)
    print(f"top-1 {accuracy(network, training):.4f} on training digits, {top1:.4f} on held-out digits")


if __name__ == "__main__":
    main()
