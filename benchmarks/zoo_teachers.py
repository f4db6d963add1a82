"""Teachers that differ in what breaks defaults, trained once in a minute or two each, cached outside the repository."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.records import say
from benchmarks.zoo_images import Images
from benchmarks.zoo_networks import Perceptron, Plain, Transformer, shrink_before_batch_norm
from shared.networks.building import build_network
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.weights import load_checkpoint
from shared.specs import InputSpec, NetworkSpec

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fast-dfkd-zoo"
NORMS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


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
    given: str | None = None
    """Another normalization that the job is told, on purpose."""
    classes: int = 10
    of: str | None = None
    """Name of the entry whose weights it shares."""
    public: str | None = None
    """A checkpoint under ``--data`` instead of a training."""
    sharpen: float = 1.0
    """What the trained logits are multiplied by: the same answers, confidence that means nothing."""
    shrink: float = 1.0
    """What enters each BatchNorm of the trained teacher is divided by it: the same answers, tiny running variances
    (huge ones below 1)."""


def _ours(
    arch: str, channels: int, height: int, width: int | None = None, classes: int = 10
) -> Callable[[], nn.Module]:
    input = InputSpec(channels=channels, height=height, width=width or height)
    return lambda: build_network(NetworkSpec(arch=arch), num_classes=classes, input=input)


ZOO: dict[str, Entry] = {
    "digits-bn": Entry("digits16", lambda: Plain(1, 10, (32, 64, 128), norm="batch"), _ours("resnet8", 1, 16)),
    "digits-plain": Entry(
        "digits16",
        lambda: Plain(1, 10, (16, 32, 64), norm="none"),
        lambda: Plain(1, 10, (8, 16, 32), norm="none"),
        norm="none",
        epochs=100,
        adam=True,
    ),
    "digits8-mlp": Entry(
        "digits8", lambda: Perceptron(64, 10, 128), lambda: Perceptron(64, 10, 64), norm="none", epochs=100, adam=True
    ),
    "digits-wrong-norm": Entry(
        "digits16",
        lambda: Plain(1, 10, (32, 64, 128), norm="batch"),
        _ours("resnet8", 1, 16),
        given="none",
        of="digits-bn",
    ),
    "shapes-resnet": Entry("shapes32", _ours("resnet14", 3, 32), _ours("resnet8", 3, 32), epochs=6),
    "shapes-huge-variance": Entry(
        "shapes32",
        lambda: Plain(3, 10, (32, 64, 128), norm="batch", eps=1e-12),
        _ours("resnet8", 3, 32),
        epochs=8,
        of="shapes-tiny-variance",
        shrink=1 / 100,
    ),
    "shapes-vgg-plain": Entry(
        "shapes32",
        lambda: Plain(3, 10, (16, 32, 64), norm="none", repeat=2),
        _ours("resnet8", 3, 32),
        epochs=24,
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
    "shapes-hundred-classes": Entry(
        "shapes32-100",
        lambda: Plain(3, 100, (32, 64, 128), norm="batch"),
        _ours("resnet8", 3, 32, classes=100),
        classes=100,
        epochs=8,
    ),
    "shapes-not-square": Entry(
        "shapes24x40", lambda: Plain(3, 10, (24, 48, 96), norm="batch"), _ours("resnet8", 3, 24, 40), epochs=8
    ),
    "shapes-large": Entry(
        "shapes64",
        lambda: Plain(3, 10, (16, 32, 64, 96), norm="batch"),
        lambda: Plain(3, 10, (8, 16, 32, 64), norm="batch"),
        norm="none",
        epochs=6,
    ),
    "shapes-tiny-variance": Entry(
        "shapes32",
        lambda: Plain(3, 10, (32, 64, 128), norm="batch", eps=1e-12),
        _ours("resnet8", 3, 32),
        epochs=8,
        shrink=300.0,
    ),
    "shapes-overconfident": Entry(
        "shapes32",
        lambda: Plain(3, 10, (32, 64, 96), norm="group"),
        _ours("resnet8", 3, 32),
        epochs=8,
        adam=True,
        of="shapes-group-norm",
        sharpen=10.0,
    ),
    "shapes-wide-resnet": Entry("shapes32", _ours("wrn16_2", 3, 32), _ours("wrn16_1", 3, 32), epochs=4),
    "digits-deep": Entry("digits16", _ours("resnet56", 1, 16), _ours("resnet8", 1, 16), epochs=14),
    "cifar-resnet20": Entry(
        "cifar",
        _ours("resnet20_cifar_a", 3, 32),
        _ours("resnet8", 3, 32),
        norm="imagenet",
        public="teachers/resnet20-12fca82f.th",
    ),
    "cifar-resnet44": Entry(
        "cifar",
        _ours("resnet44_cifar_a", 3, 32),
        _ours("resnet20", 3, 32),
        norm="imagenet",
        public="teachers/resnet44-014dd654.th",
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
    path = cached(name)
    if path.is_file():
        teacher.load_state_dict(torch.load(path, weights_only=True))
    else:
        say(f"training the teacher {entry.of or name}")
        _train(teacher, entry, images)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(teacher.state_dict(), path)
    _disguise(teacher, entry)
    return teacher.eval()


def cached(name: str) -> Path:
    """Where the trained weights of a teacher are kept: under a name that changes with the recipe."""
    name = ZOO[name].of or name
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        shapes = [tuple(tensor.shape) for tensor in entry.teacher().state_dict().values()]
    recipe = (entry.data, entry.norm, entry.epochs, entry.adam, entry.label_smoothing, shapes)
    return CACHE / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}.pt"


@torch.no_grad()
def _disguise(teacher: nn.Module, entry: Entry) -> None:
    """What a trained teacher is changed into without another answer."""
    if entry.shrink != 1:
        shrink_before_batch_norm(teacher, entry.shrink)
    if entry.sharpen != 1:
        assert isinstance(teacher.fc, nn.Linear)
        for parameter in teacher.fc.parameters():
            parameter.mul_(entry.sharpen)


def _train(teacher: nn.Module, entry: Entry, images: Images, batch: int = 64) -> None:
    inputs, labels = images[:2]
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
            height, width = pixels.shape[2:]
            reach = min(2, min(height, width) // 8)
            top, left = torch.randint(2 * reach + 1, (2,)).tolist()
            pixels = F.pad(pixels, (reach,) * 4, mode="replicate")[:, :, top:, left:][:, :, :height, :width]
            loss = F.cross_entropy(teacher(normalize(pixels)), labels[picked], label_smoothing=entry.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
