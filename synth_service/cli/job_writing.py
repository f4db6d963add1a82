"""`dfkd init`: a job file for somebody's own network, from its checkpoint and a few questions.

What the weights tell is not asked: ``shared.weight_files.fingerprints`` knows the network by the names and
shapes of its tensors. What was trained with (image size, normalization) is in no checkpoint. The file is written
only if the job is valid.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import typer
from rich.markup import escape

from shared.specs.architectures import ARCHITECTURES, check_architecture
from shared.weight_files.fingerprints import recognize
from shared.weight_files.inspection import CheckpointContent, UnreadableFile, UnsafePickle, inspect
from synth_service.cli.job_file import RefusedJob, check_job, load_job_file
from synth_service.cli.outcomes import ExitCode, fail, messages
from synth_service.cli.running import read_settings

Value = TypeVar("Value")

NORMALIZATIONS: Final[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Means and standard deviations that many trainings use, of pixels in [0, 1]."""

SMALLER: Final = {"wide_resnet": "wrn16_1", "resnet": "resnet18", "resnet_cifar": "resnet8", "vgg": "vgg8"}
"""A student of each family."""

LARGE_IMAGE: Final = 96
"""From this height on, the settings are those for photographs."""


@dataclass(frozen=True)
class Answers:
    """What the command line says already; None is asked for, or found out."""

    arch: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    size: str | None = None
    normalization: str | None = None
    student: str | None = None
    name: str | None = None


def write_job_file(checkpoint: Path, to: Path, given: Answers, *, ask: bool, force: bool) -> dict[str, Any]:
    """Writes the job file and returns the job in it; ends the command if that cannot be.

    Args:
        checkpoint: the teacher's weights.
        to: the job file.
        given: answers that are known.
        ask: ask for the others; if not, defaults are taken.
        force: overwrite.
    """
    if to.exists() and not force:
        fail(f"{to} is there already; overwrite it with --force, or write another with --to", ExitCode.USAGE)
    content = _inspect(checkpoint)
    likeness = recognize(content.tensors)
    if likeness.architectures:
        messages.print(f"[dim]the weights are those of {escape(' or '.join(likeness.architectures))}[/]")
    first = next(iter(likeness.architectures), None)
    certain = first if len(likeness.architectures) == 1 else None
    arch = _answer("network (arch)", given.arch, _arch, ask, known=certain, default=first)
    classes = _answer("classes", given.num_classes, _count, ask, known=likeness.num_classes)
    channels = _answer("color channels", given.channels, _count, ask, known=likeness.input_channels, default=3)
    is_photo = arch.startswith(("torchvision:", "timm:"))
    height, width = _answer("image size in pixels", given.size, _size, ask, default="224" if is_photo else "32")
    mean, std = _answer(
        f"normalization it was trained with ({', '.join(NORMALIZATIONS)}, or MEAN/STD)",
        given.normalization,
        lambda text: _normalization(text, channels),
        ask,
        default=("imagenet" if is_photo else "cifar10") if channels == 3 else "half",
    )
    student = _answer("student (arch)", given.student, _arch, ask, default=_smaller(arch))
    text = _text(
        name=given.name or checkpoint.stem,
        arch=arch,
        checkpoint=_storage_path(checkpoint),
        classes=classes,
        input=f"{{channels: {channels}, height: {height}, width: {width}, mean: {list(mean)}, std: {list(std)}}}",
        is_guess=given.normalization is None and not ask,
        student=student,
        preset="fast-50-imagenet" if height >= LARGE_IMAGE else "fast-5",
        has_batch_norm=any(tensor.name.endswith("running_mean") for tensor in content.tensors),
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    spec = load_job_file(str(to))
    try:
        check_job(spec)
    except RefusedJob as error:
        to.unlink()
        fail(str(error), ExitCode.USAGE)
    return spec


def _inspect(checkpoint: Path) -> CheckpointContent:
    try:
        return inspect(checkpoint)
    except OSError as error:
        fail(f"{checkpoint}: {error.strerror or error}", ExitCode.USAGE)
    except UnsafePickle as error:
        fail(f"{checkpoint}: would have to run code to load: {error}; save network.state_dict() alone", ExitCode.USAGE)
    except UnreadableFile as error:
        fail(f"{checkpoint}: is no checkpoint: {error}", ExitCode.USAGE)


def _answer(
    question: str,
    given: object,
    parse: Callable[[str], Value],
    ask: bool,
    *,
    known: object = None,
    default: object = None,
) -> Value:
    """The answer that was given, found out, typed or assumed, in that order; ends the command where there is none."""
    certain = known if given is None else given
    if certain is None and not ask:
        certain = default
    if certain is not None:
        try:
            return parse(str(certain))
        except ValueError as error:
            fail(f"{question}: {error}", ExitCode.USAGE)
    if not ask:
        fail(f"the checkpoint does not tell this, so give it as an option: {question}", ExitCode.USAGE)
    while True:
        try:
            # The question is on stderr, as all that is no result.
            return parse(typer.prompt(question, default=None if default is None else str(default), err=True))
        except ValueError as error:
            messages.print(f"[red]{escape(str(error))}[/]")
        except typer.Abort:
            raise typer.Exit(ExitCode.INTERRUPTED) from None


def _arch(text: str) -> str:
    check_architecture(text)
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no number of them")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.lower().partition("x")
    return _count(height), _count(width if x else height)


def _normalization(text: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if text in NORMALIZATIONS:
        mean, std = NORMALIZATIONS[text]
    else:
        parts = text.split("/")
        if len(parts) != 2:
            raise ValueError(f"{text!r} is neither MEAN/STD nor one of {', '.join(NORMALIZATIONS)}")
        mean, std = (tuple(float(each) for each in part.split(",")) for part in parts)
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise ValueError(f"give one value, or one for each of the {channels} channels")
    return mean, std


def _smaller(arch: str) -> str:
    known = ARCHITECTURES.get(arch)
    return SMALLER[known.family] if known else "resnet18"


def _storage_path(checkpoint: Path) -> str:
    """Its path under the storage root; if it lies elsewhere, where it would have to be copied to."""
    root = read_settings().storage
    if "://" not in root:
        try:
            return checkpoint.absolute().relative_to(Path(root).expanduser().absolute()).as_posix()
        except ValueError:
            pass
    return f"models/{checkpoint.name}"


def _text(
    *,
    name: str,
    arch: str,
    checkpoint: str,
    classes: int,
    input: str,
    is_guess: bool,
    student: str,
    preset: str,
    has_batch_norm: bool,
) -> str:
    """The job file. JSON strings are YAML strings."""
    guess = "  # THIS IS A GUESS: put in what the teacher was trained with.\n" if is_guess else ""
    bn = (
        ""
        if has_batch_norm
        else "  # The teacher has no BatchNorm statistics to match; expect poorer images.\n  bn: 0\n"
    )
    return f"""\
# A job for `dfkd submit`; check it with `dfkd validate`. docs/job-file.md has every field.
name: {json.dumps(name)}
seed: 0

teacher:
  arch: {json.dumps(arch)}
  # Under the storage root, so copy it there; or send it with `dfkd upload`, and write here what that prints.
  checkpoint: {json.dumps(checkpoint)}
  num_classes: {classes}
  # Size of the images, and the mean and standard deviation (of pixels in [0, 1]) that the teacher was trained with.
{guess}  input: {input}

# The network to train. To make a dataset only, leave it out and write `distillation: null`.
student:
  arch: {json.dumps(student)}

synthesis:
  # fast-2, fast-5 or fast-10: more steps for each batch, better images. fast-50-imagenet is for large ones.
  preset: {preset}
{bn}  # Images to make; a first try needs fewer.
  num_images: 56320
  # Workers that may share the making of images.
  partitions: 1

# Labelled images to measure the student on, never trained on: a WebDataset under the storage root.
# evaluation:
#   shards: held-out-{{000..003}}.tar
"""
