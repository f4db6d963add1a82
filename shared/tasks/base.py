"""The interface of every task: what the code that computes may ask of what a network says.

Logits are (N, C, …): classes along dimension 1, and behind it a dimension for each in which one image has several
answers (none for classification, height and width for segmentation). What is asked for one image is a mean over
these, so weights mean the same at any resolution.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import JsonValue
from torch import Tensor

from shared.errors import UserError
from shared.tasks.descriptions import TaskDescription, describe_task
from shared.tasks.labels import label_format


class Task(ABC):
    """What a network's answers mean.

    Args:
        description: of the task.
        num_classes: that the teacher tells apart.
        ignore_index: label that marks what nobody knows the class of; None where there is no such thing.
    """

    def __init__(self, description: TaskDescription, num_classes: int, ignore_index: int | None = None) -> None:
        self.description = description
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.labels = label_format(description.name, num_classes, ignore_index)

    # -- what a network returns -------------------------------------------------------------------------

    @abstractmethod
    def logits_shape(self, images: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the logits for images of a shape (N, C, H, W)."""

    def logits(self, output: object, images: torch.Size | tuple[int, ...], *, network: str = "the teacher") -> Tensor:
        """The logits in what a network returned for images of a shape (N, C, H, W).

        A dict is asked for ``out`` (torchvision's segmentation) or ``logits``, an object for ``.logits`` (so
        GoogLeNet's and Inception's training output counts without its auxiliary heads), a tuple or list for its
        first item.

        Args:
            output: whatever came back.
            images: shape of what went in.
            network: what to call it in an error.

        Raises:
            UserError: ``wrong_output_shape``, with what was seen.
        """
        found = main_output(output)
        expected = self.logits_shape(images)
        if isinstance(found, Tensor) and tuple(found.shape) == expected:
            return found
        seen = str(tuple(found.shape)) if isinstance(found, Tensor) else f"a {type(output).__name__}"
        raise UserError(
            "wrong_output_shape",
            f"{network} must return logits of shape {expected} for {images[0]} images of "
            f"{'×'.join(map(str, images[1:]))} with task {self.description.name} and teacher.num_classes "
            f"{self.num_classes}, but returned {seen}{self.hint(found)}",
        )

    def hint(self, found: object) -> str:
        """What may be wrong where logits of another shape were found; begins with a semicolon, or is empty."""
        return ""

    # -- inversion --------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self, first: int, count: int) -> Tensor:
        """What the images ``first`` … ``first + count - 1`` of a job are made for: (count, …) int64.

        Balanced over any run of numbers, and the same for a number whenever it is asked.
        """

    @abstractmethod
    def match(self, teacher_logits: Tensor, targets: Tensor, *, deal: bool) -> Tensor:
        """The targets of one inner step, given what the teacher sees in its images.

        Args:
            teacher_logits: (N, C, …), detached.
            targets: (N, …), of the step before or as ``targets`` gave them.
            deal: whether targets may be dealt out anew among the images of the batch.
        """

    @abstractmethod
    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (N,) to what ``match`` returned, mean over an image's answers."""

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """KL(teacher ‖ student) for each answer: (N, …), ≥ 0. Gradients flow through both arguments."""
        student, teacher = student_logits.log_softmax(1), teacher_logits.log_softmax(1)
        return torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)

    def agreement(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Whether both choose the same class: (N, …) bool."""
        return student_logits.argmax(1) == teacher_logits.argmax(1)

    def per_image(self, answers: Tensor) -> Tensor:
        """(N, …) → (N,): the mean over an image's answers."""
        return answers if answers.ndim == 1 else answers.flatten(1).mean(1)

    labels_follow_pixels = False
    """Whether a label belongs to the pixels as stored, so that the teacher is asked once more about the kept images,
    unchanged by augmentation. Then ``relabel`` gives the targets of the batch."""

    def relabel(self, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """The label of the kept images (N, …), as it goes into the shard, given the teacher's logits for them."""
        return targets

    @abstractmethod
    def describe(self, teacher_logits: Tensor) -> dict[str, Tensor]:
        """What a sample's ``.json`` says of the teacher's answer: (N,) each, integers or floats in [0, 1]."""

    # -- evaluation -------------------------------------------------------------------------------------

    def answers(self, logits: Tensor) -> Tensor:
        """The class of each answer: (N, …) int64."""
        return logits.argmax(1)

    @abstractmethod
    def meter(self, device: torch.device) -> Meter:
        """Measures a student and its teacher on labelled images, batch by batch."""

    takes_other_sizes = False
    """Whether labelled images may have other heights and widths than the teacher's input."""


@dataclass(frozen=True)
class Evaluation:
    """A student measured on labelled images."""

    metrics: dict[str, float]
    """The metrics of the task's description by name: fractions in [0, 1]."""
    details: dict[str, JsonValue] = field(default_factory=dict)
    """What else is worth keeping of the last measurement, for the job's result."""


class Meter(ABC):
    """Adds up, on the device, what an evaluation needs; the host waits for the device once, in ``result``."""

    @abstractmethod
    def add(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Take in the answers of both networks and the labels of some images: (N, …) each, of one shape."""

    @abstractmethod
    def result(self) -> Evaluation:
        """What was measured."""


def main_output(output: object) -> object:
    """What counts of a network's output; see ``Task.logits``."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return next((output[key] for key in ("out", "logits") if key in output), output)
    if (logits := getattr(output, "logits", None)) is not None:
        return logits
    if isinstance(output, tuple | list) and output:
        return output[0]
    return output


def build_task(name: str, num_classes: int, ignore_index: int | None = None) -> Task:
    """The task of a name, for a teacher of so many classes.

    Raises:
        ValueError: there is no such task.
    """
    description = describe_task(name)
    module, _, implementation = description.implementation.partition(":")
    task: Task = getattr(importlib.import_module(module), implementation)(description, num_classes, ignore_index)
    return task
