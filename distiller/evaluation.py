"""What a student is worth: its accuracy on labelled images and its agreement with the teacher.

The images are measured on and never trained on. The result is that of the student as handed in; nothing
here keeps a best over time, which would select on the test set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.devices import explain_out_of_memory
from shared.networks.image_operations import Normalization, to_pixels
from shared.specs import InputSpec


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Fractions in [0, 1] of the labelled images."""

    student_top1: float
    teacher_top1: float
    agreement: float
    """Student and teacher choose the same class, be it right or wrong."""


class Evaluator:
    """Compares students with a teacher on a fixed set; the teacher is asked once, on construction.

    Networks run in float32 and eval mode, as a user will run them, and are left in the mode they came in.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        teacher: normalized images (N, C, H, W) → logits (N, num_classes); already on the device.
        input: the teacher's normalization.
        batch_size: images per forward pass; ``evaluation.batch_size``.
        device: where to compute.

    Raises:
        UserError: ``bad_evaluation_images`` or ``bad_evaluation_labels``: the set does not suit the teacher.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        teacher: nn.Module,
        input: InputSpec,
        batch_size: int,
        device: torch.device,
    ) -> None:
        if len(images) == 0 or images.dtype != torch.uint8 or images.shape[1:] != input.shape:
            raise UserError(
                "bad_evaluation_images",
                f"evaluation.shards holds {len(images)} images of {tuple(images.shape[1:])}; "
                f"at least one of the teacher's shape {input.shape} is needed",
            )
        if labels.shape != images.shape[:1]:
            raise UserError(
                "bad_evaluation_labels",
                f"evaluation.shards holds {len(images)} images but labels of shape {tuple(labels.shape)}",
            )
        self.batch_size = batch_size
        self.device = device
        self.normalize = Normalization(input).to(device)
        self._images = images.pin_memory() if device.type == "cuda" else images
        self._labels = labels.to(device)
        teacher_logits = self._logits(teacher)
        self._check_labels(num_classes=teacher_logits.shape[1])
        self._teacher_classes = teacher_logits.argmax(1)

    def evaluate(self, student: nn.Module) -> Evaluation:
        """Measure a student (normalized images → logits, on the device). Waits for the device once."""
        classes = self._logits(student).argmax(1)
        matches = torch.stack(
            [
                classes == self._labels,
                self._teacher_classes == self._labels,
                classes == self._teacher_classes,
            ]
        )
        return Evaluation(*matches.double().mean(1).tolist())

    @torch.no_grad()
    def _logits(self, network: nn.Module) -> Tensor:
        """(N, num_classes) over the whole set, on the device."""
        with evaluating(network), explain_out_of_memory("evaluation.batch_size", self.batch_size):
            return torch.cat(
                [
                    network(self.normalize(to_pixels(batch.to(self.device, non_blocking=True))))
                    for batch in torch.split(self._images, self.batch_size)
                ]
            )

    def _check_labels(self, num_classes: int) -> None:
        lowest, highest = int(self._labels.min()), int(self._labels.max())
        if lowest < 0 or highest >= num_classes:
            raise UserError(
                "bad_evaluation_labels",
                f"labels of evaluation.shards run from {lowest} to {highest}, but the teacher tells {num_classes} "
                f"classes apart: they must lie in 0 to {num_classes - 1}",
            )


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for a while. Every module gets its own mode back: a user may have frozen some of them."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
