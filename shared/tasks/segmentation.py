"""Semantic segmentation: one class for each pixel.

No labels are asked for: random maps are no scenes, so an image is made for what the teacher itself sees in it, pixel
by pixel and anew in every step (the one-hot term of DAFL). A sample's label is the teacher's map of the stored image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor

from shared.tasks.base import Evaluation, Meter, Task


class SemanticSegmentation(Task):
    """Logits (N, C, H, W), targets and labels (N, H, W)."""

    labels_follow_pixels = True
    takes_other_sizes = True

    def logits_shape(self, images: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return images[0], self.num_classes, images[2], images[3]

    def hint(self, found: object) -> str:
        """See the base class."""
        if not isinstance(found, Tensor):
            return ""
        if found.ndim == 2:
            return "; that is what a classifier returns: write `teacher.task: classification`"
        if found.ndim == 4 and found.shape[1] == self.num_classes:
            return "; the network has to bring its logits to the size of the image (bilinear upsampling)"
        return ""

    def targets(self, first: int, count: int) -> Tensor:
        """(count, 0): nothing is asked for."""
        return torch.empty(count, 0, dtype=torch.int64)

    def match(self, teacher_logits: Tensor, targets: Tensor, *, deal: bool) -> Tensor:
        """What the teacher sees."""
        return teacher_logits.argmax(1)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N,), mean over pixels."""
        return self.per_image(F.cross_entropy(logits, targets, reduction="none"))

    def answers(self, logits: Tensor) -> Tensor:
        """(N, H, W), in 8 bits where these hold the classes."""
        classes = logits.argmax(1)
        return classes.to(torch.uint8) if self.num_classes <= 256 else classes.to(torch.int32)

    def relabel(self, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """The teacher's map of the image."""
        return self.answers(teacher_logits)

    def describe(self, teacher_logits: Tensor) -> dict[str, Tensor]:
        """Mean probability of the teacher's classes, how many there are, and which has the most pixels."""
        confidence, classes = teacher_logits.softmax(1).max(1)
        flat = classes.flatten(1)
        pixels = torch.zeros(len(flat), self.num_classes, dtype=torch.int64, device=flat.device)
        pixels.scatter_add_(1, flat, torch.ones_like(flat))
        return {
            "teacher_classes": (pixels > 0).sum(1),
            "teacher_confidence": confidence.flatten(1).mean(1).float(),
            "teacher_main_class": pixels.argmax(1),
        }

    def meter(self, device: torch.device) -> Meter:
        """One confusion matrix of each network over all pixels."""
        return ConfusionMeter(self.num_classes, self.ignore_index, device)


class ConfusionMeter(Meter):
    """Mean intersection over union: one confusion matrix over the whole set, classes that occur nowhere left out."""

    def __init__(self, num_classes: int, ignore_index: int | None, device: torch.device) -> None:
        self._classes = num_classes
        self._ignored = ignore_index
        self._matrices = torch.zeros(2, num_classes, num_classes, dtype=torch.int64, device=device)
        self._agreed = torch.zeros((), dtype=torch.int64, device=device)
        self._pixels = 0

    def add(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """See the base class. Labels outside the classes do not count, whatever marks them."""
        self._agreed += (student == teacher).sum()
        self._pixels += student.numel()
        truth = labels.flatten().long()
        known = (truth >= 0) & (truth < self._classes)
        if self._ignored is not None:
            known &= truth != self._ignored
        for matrix, answers in zip(self._matrices, (student, teacher), strict=True):
            cells = truth[known] * self._classes + answers.flatten()[known].long()
            matrix += torch.bincount(cells, minlength=self._classes**2).view(self._classes, self._classes)

    def result(self) -> Evaluation:
        """See the base class."""
        student, teacher = self._matrices.cpu().double()
        of_student, of_teacher = class_iou(student), class_iou(teacher)
        return Evaluation(
            {
                "student_miou": mean_of_known(of_student),
                "teacher_miou": mean_of_known(of_teacher),
                "agreement": int(self._agreed) / self._pixels,
                "student_pixel_accuracy": _accuracy(student),
            },
            {
                "student_class_iou": _rounded(of_student),
                "teacher_class_iou": _rounded(of_teacher),
                "teacher_pixel_accuracy": _accuracy(teacher),
            },
        )


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union (C,) of a confusion matrix (C, C) with rows of truth; NaN where a class is nowhere."""
    hits = confusion.diagonal()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def mean_of_known(values: Tensor) -> float:
    """The mean without NaN; 0 where there is nothing else."""
    return float(values.nanmean().nan_to_num())


def _accuracy(confusion: Tensor) -> float:
    return float((confusion.diagonal().sum() / confusion.sum()).nan_to_num())


def _rounded(values: Tensor) -> list[JsonValue]:
    return [None if value != value else round(value, 6) for value in values.tolist()]
