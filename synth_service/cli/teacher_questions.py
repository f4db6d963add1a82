"""What a job must say of somebody's own teacher: read from its file, given as an option, asked for, or guessed.

A file written by this project says everything of itself. Of others ``shared.weight_files`` knows the network by the
names and shapes of its weights, and tells channels and classes of networks that it does not know. What a network was
trained with (image size, normalization) is in no such file; where that is not asked, it is a guess, and said to be one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.markup import escape

from shared.specs import InputSpec
from shared.specs.architectures import ARCHITECTURES, ZOOS, check_architecture
from shared.specs.normalizations import NORMALIZATIONS
from shared.tasks.descriptions import CLASSIFICATION, TASK_NAMES
from shared.weight_files.fingerprints import recognize
from shared.weight_files.inspection import CheckpointContent, UnreadableFile, UnsafePickle, inspect
from synth_service.cli.facts import Facts, count, image_size, known_arch, listed, named, normalization
from synth_service.cli.model_folders import Described, published_by_timm
from synth_service.cli.outcomes import ExitCode, fail, messages

SIZES: Final = {"mnist": "28", "cifar10": "32", "cifar100": "32", "imagenet": "224"}
"""Image sizes that go with the normalizations of these names."""

SMALLER: Final = {
    "wide_resnet": "wrn16_1",
    "resnet": "resnet18",
    "resnet_cifar": "resnet8",
    "resnet_cifar_a": "resnet8",
    "vgg": "vgg8",
}
"""A student of each family."""

ANY_SMALL: Final = "wrn16_1"
"""For small images of a network that is not ours."""

ANY_FOR_PHOTOS: Final = "torchvision:mobilenet_v3_small"
"""Costs 1.5 % of a torchvision ResNet-50; the stems for small images would cost more than most teachers."""

SMALLEST_FOR_PHOTOS: Final = "torchvision:shufflenet_v2_x0_5"
SMALL_FOR_PHOTOS: Final = ("mobilenet_v3_small", "mobilenetv3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet")
"""Teachers that are no larger than the usual student."""

ANY_SEGMENTER: Final = "deeplab_small"
SMALLEST_SEGMENTER: Final = "deeplab_tiny"

ARCH_FORMS: Final = (
    "a name such as resnet18, torchvision:mobilenet_v3_small, timm:deit_tiny_patch16_224, transformers:vit, or "
    "package.module:factory for a network of your own"
)


@dataclass(frozen=True)
class Answers:
    """What the command line says already; None is found out, asked for or guessed."""

    arch: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    size: str | None = None
    normalization: str | None = None
    student: str | None = None
    name: str | None = None


@dataclass
class Teacher:
    """A teacher as a job describes it, and the student to train.

    Attributes:
        guesses: what the file does not tell and nobody said: what it is, the value, and the option that says another.
    """

    arch: str
    kwargs: dict[str, Any]
    num_classes: int
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    student: str
    has_batch_norm: bool
    is_transformer: bool
    task: str = CLASSIFICATION.name
    guesses: list[tuple[str, str, str]] = field(default_factory=list)

    def input_fields(self) -> dict[str, Any]:
        """`teacher.input` of the job."""
        size = {"channels": self.channels, "height": self.height, "width": self.width}
        return {**size, "mean": list(self.mean), "std": list(self.std)}


def describe_teacher(checkpoint: Path, given: Answers, *, ask: bool, beside: Described | None = None) -> Teacher:
    """Everything that a job must say of a teacher; ends the command where that cannot be known.

    Args:
        checkpoint: its weights.
        given: answers that are known.
        ask: ask for the others; if not, they are guessed where a guess makes sense.
        beside: what the folder of the weights says, of which the weights themselves say nothing.
    """
    content = inspected(checkpoint)
    told = beside or _told(content.metadata)
    likeness = recognize(content.tensors)
    archs = (told.arch,) if told.arch else likeness.architectures
    facts = Facts(ask)
    arch = facts.find(
        "network (arch)",
        "--arch",
        known_arch,
        given=given.arch,
        known=archs[0] if len(archs) == 1 else None,
        guess=archs[0] if archs else None,
        help=ARCH_FORMS,
    )
    num_classes = facts.find(
        "classes",
        "--num-classes",
        count,
        given=given.num_classes,
        known=told.num_classes or likeness.num_classes,
        help="how many classes the teacher tells apart",
    )
    channels = facts.find(
        "color channels",
        "--channels",
        count,
        given=given.channels,
        known=told.channels or likeness.input_channels,
        guess=3,
    )
    is_photo = arch.partition(":")[0] in ZOOS
    published = published_by_timm(arch) if given.normalization is None and told.mean is None else None
    published_size = f"{published.size[0]}x{published.size[1]}" if published and published.size else None
    height, width = facts.find(
        "image size in pixels",
        "--size",
        image_size,
        given=given.size,
        known=f"{told.size[0]}x{told.size[1]}" if told.size else None,
        guess=published_size or SIZES.get(given.normalization or "", "224" if is_photo else "32"),
    )
    usual = ("imagenet" if height >= LARGE_IMAGE else "cifar10") if channels == 3 else "half"
    if channels == 3 and published and published.mean and published.std:
        usual = named(published.mean, published.std)
    mean, std = facts.find(
        f"normalization it was trained with ({', '.join(NORMALIZATIONS)}, or MEAN/STD)",
        "--normalization",
        lambda text: normalization(text, channels),
        given=given.normalization,
        known=f"{listed(told.mean)}/{listed(told.std)}" if told.mean and told.std else None,
        guess=usual,
    )
    task = told.task if arch == told.arch else CLASSIFICATION.name
    student = facts.find(
        "student (arch)", "--student", known_arch, given=given.student, guess=smaller(arch, height, task)
    )
    if facts.known:
        messages.print(f"[dim]the file tells: {escape(', '.join(facts.known))}[/]")
    return Teacher(
        arch=arch,
        kwargs=told.kwargs if arch == told.arch else {},
        num_classes=num_classes,
        channels=channels,
        height=height,
        width=width,
        mean=mean,
        std=std,
        student=student,
        has_batch_norm=any(tensor.name.endswith("running_mean") for tensor in content.tensors),
        is_transformer=any(tensor.name.endswith(ATTENTION_WEIGHTS) for tensor in content.tensors),
        task=task,
        guesses=facts.guesses,
    )


ATTENTION_WEIGHTS: Final = ("attn.proj.weight", "self_attention.out_proj.weight")
"""How the last projection of an attention block is called in timm's and torchvision's vision transformers."""

LARGE_IMAGE: Final = 96
"""From this height on, the settings are those for photographs."""


def tell_guesses(teacher: Teacher) -> None:
    """Says what was guessed, and with which option to say otherwise."""
    if teacher.guesses:
        listed = ", ".join(f"{what} {value} ({option})" for what, value, option in teacher.guesses)
        messages.print(
            f"[yellow]guessed:[/] {escape(listed)}. The file does not tell these, and a wrong guess makes poor images: "
            "give the option where yours differs"
        )


def inspected(checkpoint: Path) -> CheckpointContent:
    """What a checkpoint file holds; ends the command if it is none."""
    try:
        return inspect(checkpoint)
    except OSError as error:
        fail(f"{checkpoint}: {error.strerror or error}", ExitCode.USAGE)
    except UnsafePickle as error:
        remedy = "load it where its code is, and save the weights alone: torch.save(network.state_dict(), 'weights.pt')"
        fail(f"{checkpoint}: would have to run code to load: {error}; {error.remedy or remedy}", ExitCode.USAGE)
    except UnreadableFile as error:
        fail(f"{checkpoint}: is no checkpoint: {error}{f'. {error.remedy}' if error.remedy else ''}", ExitCode.USAGE)


def smaller(arch: str, height: int, task: str = CLASSIFICATION.name) -> str:
    """A student to propose for a teacher of images of this height: one that costs less than the teacher."""
    if task != CLASSIFICATION.name:
        return SMALLEST_SEGMENTER if arch == ANY_SEGMENTER else ANY_SEGMENTER
    known = ARCHITECTURES.get(arch)
    if height >= LARGE_IMAGE:
        return SMALLEST_FOR_PHOTOS if arch.partition(":")[2].startswith(SMALL_FOR_PHOTOS) else ANY_FOR_PHOTOS
    return SMALLER[known.family] if known else ANY_SMALL


def _told(metadata: dict[str, str]) -> Described:
    """What the file says of itself in its header, as far as it can be understood: anybody may have written it."""
    try:
        arch, kwargs = metadata.get("arch"), json.loads(metadata.get("kwargs", "{}"))
        if arch is None or not isinstance(kwargs, dict):
            return Described()
        check_architecture(arch)
        classes = int(metadata["num_classes"]) if "num_classes" in metadata else None
        input = InputSpec.model_validate_json(metadata["input"]) if "input" in metadata else None
    except (ValueError, ValidationError):
        return Described()
    task = metadata.get("task", CLASSIFICATION.name)
    if task not in TASK_NAMES:
        return Described()
    if input is None:
        return Described(arch, kwargs, task, classes)
    size = input.height, input.width
    return Described(arch, kwargs, task, classes, input.channels, size, input.mean, input.std)
