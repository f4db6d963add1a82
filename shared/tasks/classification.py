"""Image classification: one class for each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from shared.tasks.base import Evaluation, Meter, Task


class Classification(Task):
    """Logits (N, C), targets and labels (N,)."""

    def logits_shape(self, images: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """(N, C)."""
        return images[0], self.num_classes

    def hint(self, found: object) -> str:
        """See the base class."""
        if isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] == self.num_classes:
            return "; a network that labels pixels needs `teacher.task: semantic-segmentation`"
        return ""

    def targets(self, first: int, count: int) -> Tensor:
        """Classes in turn, so that they are balanced to ±1."""
        return torch.arange(first, first + count) % self.num_classes

    def match(self, teacher_logits: Tensor, targets: Tensor, *, deal: bool) -> Tensor:
        """See the base class; with ``deal``, see ``match_targets``."""
        return match_targets(teacher_logits, targets) if deal else targets

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N,)."""
        return F.cross_entropy(logits, targets, reduction="none")

    def describe(self, teacher_logits: Tensor) -> dict[str, Tensor]:
        """The class that the teacher sees, and its probability."""
        confidence, top1 = teacher_logits.softmax(1).max(1)
        return {"teacher_confidence": confidence.float(), "teacher_top1": top1}

    def meter(self, device: torch.device) -> Meter:
        """Counts the images on which each pair agrees."""
        return TopOneMeter(device)


class TopOneMeter(Meter):
    """Top-1 accuracy of both networks and their agreement."""

    def __init__(self, device: torch.device) -> None:
        self._matches = torch.zeros(3, dtype=torch.int64, device=device)
        self._images = 0

    def add(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """See the base class."""
        self._matches += torch.stack([student == labels, teacher == labels, student == teacher]).sum(1)
        self._images += len(labels)

    def result(self) -> Evaluation:
        """See the base class."""
        student, teacher, agreement = (self._matches.double() / self._images).tolist()
        return Evaluation({"student_top1": student, "teacher_top1": teacher, "agreement": agreement})


def match_targets(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """The same targets, dealt out so that each image gets a class that the teacher already leans to.

    Latents are random and say nothing of a class, and a few steps cannot turn an image that looks like a
    three into a seven. Which image of a batch is to become which class is free, though, so the assignment
    is the one that maximizes the batch's total log-probability; the classes stay as balanced as they were.
    The host waits for the device once.

    Args:
        teacher_logits: (N, C) of the first inner step.
        targets: (N,) int64.

    Returns:
        (N,) a permutation of ``targets``.
    """
    gain = teacher_logits.log_softmax(1)[:, targets].float().nan_to_num()  # (image, target)
    images, places = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    order = torch.empty(len(targets), dtype=torch.int64)
    order[torch.from_numpy(images)] = torch.from_numpy(places)
    return targets[order.to(targets.device, non_blocking=True)]
