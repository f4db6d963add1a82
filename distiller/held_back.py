"""Images that the student is never trained on, and how it does on them: the measure of its quality without labels.

Of every ``EVERY`` images that arrive one is held back, by its number, so a successor holds back the same. The newest
are kept, since they are the best that the generator makes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.modes import evaluating
from shared.networks.training_inputs import facts_of
from shared.specs import InputSpec
from shared.tasks.base import Task
from shared.tasks.quality import kappa

EVERY = 16
MOST_IMAGES = 512
MOST_BYTES = 64 * 2**20
FEWEST_IMAGES = 32
"""Fewer say nothing."""

BATCH = 128


class HeldBack:
    """The images held back.

    Args:
        task: what logits mean.
        input: of the teacher.
        device: of both networks.
        teacher: as it was given, with its BatchNorm layers.
    """

    def __init__(self, task: Task, input: InputSpec, device: torch.device, teacher: nn.Module) -> None:
        self._task = task
        self._facts = facts_of(teacher, input)
        self._device = device
        self._normalize = Normalization(input).to(device)
        self._most = max(FEWEST_IMAGES, min(MOST_IMAGES, MOST_BYTES // math.prod(input.shape)))
        self._images: NDArray[np.uint8] = np.empty((0, *input.shape), np.uint8)
        self.arrived = 0
        """Images that ever arrived, those that were held back among them."""

    def take(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Holds some of these images (N, C, H, W) back and returns the others."""
        numbers = np.arange(self.arrived, self.arrived + len(images))
        self.arrived += len(images)
        held = numbers % EVERY == EVERY - 1
        if held.any():
            self._images = np.concatenate([self._images, images[held]])[-self._most :]
        remaining: NDArray[np.uint8] = images[~held]
        return remaining

    @torch.no_grad()
    def measure(self, student: nn.Module, teacher: nn.Module) -> dict[str, float]:
        """Measures of ``shared.tasks.quality`` by name; of the teacher alone while there are too few images.

        Args:
            student: in any mode.
            teacher: the same as before, or a copy that says the same.
        """
        if len(self._images) < FEWEST_IMAGES:
            return dict(self._facts)
        with evaluating(student):
            answers = [self._answers(part, student, teacher) for part in torch.from_numpy(self._images).split(BATCH)]
        theirs, ours, confidence = (torch.cat(parts) for parts in zip(*answers, strict=True))
        classes = self._task.num_classes
        seen = torch.bincount(theirs, minlength=classes).double() / len(theirs)
        said = torch.bincount(ours, minlength=classes).double() / len(ours)
        agreement = float((theirs == ours).double().mean())
        # So few images cannot show more classes than there are images.
        most = math.log(min(classes, len(self._images)))
        return {
            "held_back_agreement": agreement,
            "held_back_kappa": kappa(agreement, list(zip(seen.tolist(), said.tolist(), strict=True))),
            "held_back_confidence": float(confidence.double().mean()),
            "class_entropy": float(-torch.xlogy(seen, seen).sum()) / most,
            "diversity": float(self._images.std(0).mean()) / 255,
        } | self._facts

    def _answers(self, images: Tensor, student: nn.Module, teacher: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """What teacher and student say, and how sure the teacher is: flat, on the host."""
        pixels = to_pixels(images.to(self._device)).contiguous(memory_format=torch.channels_last)
        inputs = self._normalize(pixels)
        logits = self._task.logits(teacher(inputs), inputs.shape, network="the teacher")
        own = self._task.logits(student(inputs), inputs.shape, network="the student")
        confidence = logits.softmax(1).amax(1)
        return logits.argmax(1).flatten().cpu(), own.argmax(1).flatten().cpu(), confidence.flatten().cpu()
