"""Inversion losses: what makes a synthetic image look like training data to the teacher.

Each function takes tensors and, where the loss of an image does not depend on the other images, returns
one value per image: their mean is what gets minimized, and they tell the best image apart from the best
batch. The loss that compares whole batches, on BatchNorm statistics, is in ``batch_norm``; what depends on
the task (cross-entropy, divergence) is in ``shared.tasks``; ``terms`` gives each a name and a weight. Symbols
follow Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jensen_shannon(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """Jensen-Shannon-like divergence (N, …) of student and teacher, as DeepInversion measures disagreement.

    It is ½ KL(M ‖ P) + ½ KL(M ‖ Q) with M = (P + Q)/2, the direction of Yin et al.'s code, and the
    probabilities are clipped to [0.01, 0.99] so that one confident class does not drown the others.

    Args:
        student_logits, teacher_logits: (N, C, …), unnormalised; symmetric in both.
        temperature: softens both distributions.
    """
    student = (student_logits / temperature).softmax(1)
    teacher = (teacher_logits / temperature).softmax(1)
    middle = ((student + teacher) / 2).clamp(0.01, 0.99)
    to_student = F.kl_div(student.clamp(0.01, 0.99).log(), middle, reduction="none")
    to_teacher = F.kl_div(teacher.clamp(0.01, 0.99).log(), middle, reduction="none")
    return ((to_student + to_teacher) / 2).sum(1)


def class_balance(logits: Tensor) -> Tensor:
    """Negative entropy of the batch's mean prediction: lowest, -log C, when all classes are equally likely.

    Args:
        logits: (N, C, …), unnormalised; the mean is over all dimensions but that of the classes.

    Returns:
        Scalar in [-log C, 0].
    """
    mean = logits.softmax(1).transpose(0, 1).flatten(1).mean(1)
    return torch.xlogy(mean, mean).sum()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference (N,) of neighbours, summed over the four directions of neighbourhood.

    Args:
        images: (N, C, H, W), both sides at least 2.
    """
    return torch.stack([difference.abs().mean((1, 2, 3)) for difference in _differences(images)]).sum(0)


def total_variation_l2(images: Tensor) -> Tensor:
    """Scalar: the 2-norms of the whole batch's neighbour differences, summed over the four directions.

    The form of DeepInversion's authors; it grows with batch and size.
    """
    return torch.stack([torch.linalg.vector_norm(difference) for difference in _differences(images)]).sum()


def _differences(images: Tensor) -> list[Tensor]:
    """Of every pixel with its neighbours to the right, below, and along both diagonals."""
    pairs = (
        (images[:, :, :, :-1], images[:, :, :, 1:]),
        (images[:, :, :-1, :], images[:, :, 1:, :]),
        (images[:, :, :-1, 1:], images[:, :, 1:, :-1]),
        (images[:, :, :-1, :-1], images[:, :, 1:, 1:]),
    )
    return [one - other for one, other in pairs]


def squared_norm(images: Tensor) -> Tensor:
    """(N,) sum of squares."""
    return images.square().sum((1, 2, 3))


def norm(images: Tensor) -> Tensor:
    """(N,) 2-norm of each image."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return norms


def batch_norm_of_pixels(images: Tensor) -> Tensor:
    """Scalar: the 2-norm of the whole batch."""
    whole: Tensor = torch.linalg.vector_norm(images)
    return whole
