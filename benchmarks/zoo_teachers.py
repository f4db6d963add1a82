"""Teachers that differ in what breaks defaults, each trained once in a minute or two and kept outside the repository.

Data: scikit-learn's digits, shapes drawn by formula (colors, places and sizes vary), and, with ``--data``, 10,000
CIFAR-10 images. Every set is (training images, labels, test images, labels): uint8 (N, C, H, W) and int64.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.records import say
from shared.networks.building import build_network
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.weights import load_checkpoint
from shared.specs import InputSpec, NetworkSpec

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fast-dfkd-zoo"
Images = tuple[Tensor, Tensor, Tensor, Tensor]
NORMS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Plain(nn.Module):
    """Convolutions, pooled, and a linear layer; with BatchNorm, GroupNorm or neither."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], *, norm: str, repeat: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for place in range(repeat):
                stride = 2 if stage and not place else 1
                layers.append(nn.Conv2d(channels, width, 3, stride, 1, bias=norm == "none"))
                if norm != "none":
                    layers.append(nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(8, width))
                layers.append(nn.ReLU())
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


class Perceptron(nn.Module):
    """Two hidden layers on all pixels."""

    def __init__(self, inputs: int, classes: int, width: int) -> None:
        super().__init__()
        layers = (nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.fc(self.features(images))
        return logits


class Transformer(nn.Module):
    """A small ViT with patches of 4."""

    def __init__(self, channels: int, classes: int, size: int, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.places = nn.Parameter(torch.randn(1, (size // 4) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.fc(self.norm(self.encoder(tokens)).mean(1))
        return logits


@dataclass(frozen=True)
class Entry:
    """A teacher of the zoo and its student."""

    data: str
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    norm: str = "half"
    epochs: int = 12
    adam: bool = False
    label_smoothing: float = 0.0
    scale: float = 1.0
    """What the first weights are multiplied by: with BatchNorm it only changes the running variances."""
    given: str | None = None
    """Another normalization that the job is told, on purpose."""
    classes: int = 10
    of: str | None = None
    """Name of the entry whose weights it shares."""
    public: str | None = None
    """A checkpoint under ``--data`` instead of a training."""
    extras: dict[str, Any] = field(default_factory=dict)


def _ours(arch: str, channels: int, size: int, classes: int = 10) -> Callable[[], nn.Module]:
    input = InputSpec(channels=channels, height=size, width=size)
    return lambda: build_network(NetworkSpec(arch=arch), num_classes=classes, input=input)


ZOO: dict[str, Entry] = {
    "digits-bn": Entry("digits16", lambda: Plain(1, 10, (32, 64, 128), norm="batch"), _ours("resnet8", 1, 16)),
    "digits-plain": Entry(
        "digits16",
        lambda: Plain(1, 10, (16, 32, 64), norm="none"),
        lambda: Plain(1, 10, (8, 16, 32), norm="none"),
        norm="none",
        epochs=40,
        adam=True,
    ),
    "digits8-mlp": Entry(
        "digits8", lambda: Perceptron(64, 10, 128), lambda: Perceptron(64, 10, 64), norm="none", epochs=40, adam=True
    ),
    "digits-wrong-norm": Entry(
        "digits16",
        lambda: Plain(1, 10, (32, 64, 128), norm="batch"),
        _ours("resnet8", 1, 16),
        given="none",
        of="digits-bn",
    ),
    "shapes-resnet": Entry("shapes32", _ours("resnet14", 3, 32), _ours("resnet8", 3, 32), epochs=6),
    "shapes-huge-variance": Entry("shapes32", _ours("resnet14", 3, 32), _ours("resnet8", 3, 32), epochs=6, scale=30.0),
    "shapes-vgg-plain": Entry(
        "shapes32",
        lambda: Plain(3, 10, (24, 48, 64), norm="none", repeat=2),
        _ours("resnet8", 3, 32),
        epochs=14,
        adam=True,
    ),
    "shapes-group-norm": Entry(
        "shapes32", lambda: Plain(3, 10, (32, 64, 96), norm="group"), _ours("resnet8", 3, 32), epochs=8, adam=True
    ),
    "shapes-two-classes": Entry(
        "shapes32-2",
        lambda: Plain(3, 2, (16, 32, 64), norm="batch"),
        lambda: Plain(3, 2, (8, 16, 32), norm="batch"),
        norm="none",
        classes=2,
        epochs=6,
    ),
    "cifar-resnet20": Entry(
        "cifar",
        _ours("resnet20_cifar_a", 3, 32),
        _ours("resnet8", 3, 32),
        norm="imagenet",
        public="teachers/resnet20-12fca82f.th",
    ),
    "cifar-cnn-smoothed": Entry(
        "cifar",
        lambda: Plain(3, 10, (32, 64, 128), norm="batch"),
        _ours("resnet8", 3, 32),
        norm="cifar10",
        label_smoothing=0.1,
    ),
    "cifar-vgg-plain": Entry(
        "cifar",
        lambda: Plain(3, 10, (24, 48, 96), norm="none", repeat=2),
        _ours("resnet8", 3, 32),
        norm="cifar10",
        adam=True,
    ),
    "cifar-vit": Entry("cifar", lambda: Transformer(3, 10, 32), _ours("resnet8", 3, 32), norm="cifar10", adam=True),
}


def input_of(entry: Entry, images: Tensor, norm: str) -> InputSpec:
    """Shape and normalization."""
    mean, std = NORMS[norm]
    channels, height, width = images.shape[1:]
    return InputSpec.model_validate(
        {"channels": channels, "height": height, "width": width, "mean": list(mean), "std": list(std)}
    )


def load_teacher(name: str, images: Images, data: Path | None) -> nn.Module:
    """The trained teacher, from the cache if it is there."""
    entry = ZOO[name]
    torch.manual_seed(0)
    teacher = entry.teacher()
    if entry.public is not None:
        assert data is not None
        load_checkpoint(teacher, data / entry.public, field="teacher.checkpoint")
        return teacher.eval()
    path = CACHE / f"{entry.of or name}.pt"
    if path.is_file():
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher.eval()
    say(f"training the teacher {name}")
    _train(teacher, entry, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(teacher.state_dict(), path)
    return teacher.eval()


def _train(teacher: nn.Module, entry: Entry, images: Images, batch: int = 64) -> None:
    inputs, labels = images[:2]
    for module in teacher.modules():
        if isinstance(module, nn.Conv2d) and entry.scale != 1:
            module.weight.data *= entry.scale
    normalize = Normalization(input_of(entry, inputs, entry.norm))
    steps = entry.epochs * (len(inputs) // batch)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        teacher.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    if entry.adam:
        optimizer = torch.optim.AdamW(teacher.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3 if entry.adam else 0.1, total_steps=steps)
    teacher.train()
    for _ in range(entry.epochs):
        for picked in torch.randperm(len(inputs))[: len(inputs) // batch * batch].split(batch):
            pixels = to_pixels(inputs[picked])
            size, (top, left) = pixels.shape[-1], torch.randint(5, (2,)).tolist()
            pixels = F.pad(pixels, (2, 2, 2, 2), mode="replicate")[:, :, top : top + size, left : left + size]
            loss = F.cross_entropy(teacher(normalize(pixels)), labels[picked], label_smoothing=entry.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@cache
def load_images(name: str, data: Path | None) -> Images:
    """A data set of the zoo."""
    if name.startswith("digits"):
        return _digits(int(name.removeprefix("digits")))
    if name.startswith("shapes"):
        size, _, classes = name.removeprefix("shapes").partition("-")
        return (*_shapes(4000, 1, int(size), int(classes or 10)), *_shapes(1500, 2, int(size), int(classes or 10)))
    if data is None:
        raise SystemExit(f"{name} needs --data, the folder with cifar10-train.tar and cifar10-test.tar")
    return (*_tar(data / "cifar10-train.tar"), *_tar(data / "cifar10-test.tar"))


def _digits(size: int) -> Images:
    from sklearn.datasets import load_digits  # of the extra `bench`

    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    if size != 8:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images, labels = (pixels[order] * 255).round().to(torch.uint8), torch.tensor(digits.target)[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def _shapes(count: int, seed: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    images, labels = np.zeros((count, 3, size, size), np.float32), random.randint(classes, size=count)
    for number in range(count):
        (top, left), reach, turn = (
            random.uniform(0.35, 0.65, 2) * size,
            random.uniform(0.2, 0.34) * size,
            random.uniform(-0.3, 0.3),
        )
        v, u = rows - top, columns - left
        v, u = np.cos(turn) * v + np.sin(turn) * u, np.cos(turn) * u - np.sin(turn) * v
        radius, period = np.hypot(u, v), random.uniform(2.2, 3.2) * size / 32
        box = np.maximum(abs(u), abs(v)) < reach
        across, down = np.sin(u * np.pi / period), np.sin(v * np.pi / period)
        shape = [
            radius < reach,
            box,
            (v < reach * 0.7) & (v > -reach + 2 * abs(u)),
            (np.minimum(abs(u), abs(v)) < reach * 0.3) & box,
            (radius < reach) & (radius > reach * 0.55),
            box & (across > 0),
            box & (down > 0),
            box & (across * down > 0),
            abs(u) + abs(v) < reach,
            box & ~(np.maximum(abs(u), abs(v)) < reach * 0.6),
        ][labels[number]]
        back, front = random.uniform(0, 1, 3), random.uniform(0, 1, 3)
        while abs(back - front).mean() < 0.3:
            front = random.uniform(0, 1, 3)
        light = (rows / size - 0.5) * random.uniform(-0.4, 0.4)
        noise = random.normal(0, 0.06, images[number].shape)
        images[number] = np.where(shape, front[:, None, None], back[:, None, None]) + light + noise
    return torch.from_numpy((images.clip(0, 1) * 255).round().astype(np.uint8)), torch.from_numpy(
        labels.astype(np.int64)
    )


def _tar(path: Path) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".cls"):
                labels.append(int(content.read()))
            elif member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")))
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), torch.tensor(labels)
