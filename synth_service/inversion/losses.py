"""Inversion losses: what makes a synthetic image look like training data to the teacher.

Each function takes tensors and, where the loss of an image does not depend on the other images, returns
one value per image: their mean is what gets minimized, and they tell the best image apart from the best
batch. The loss that compares whole batches, on BatchNorm statistics, is in ``batch_norm``. Nothing here
knows of jobs, files or devices. Symbols follow Fang et al., "Up to 100x Faster Data-Free Knowledge
Distillation", AAAI 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (N,) of the teacher's prediction to the class that the image should show.

    Args:
        teacher_logits: (N, C), unnormalised.
        targets: (N,) int64.
    """
    return F.cross_entropy(teacher_logits, targets, reduction="none")


def adversarial_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Negative KL(teacher ‖ student) where both agree on the class, 0 elsewhere.

    Minimising it drives images to where the student imitates the teacher's label but not its
    distribution (decision adversarial distillation).

    Args:
        student_logits, teacher_logits: (N, C), unnormalised.

    Returns:
        (N,) values ≤ 0. Gradients flow through both arguments.
    """
    agree = student_logits.argmax(1) == teacher_logits.argmax(1)
    divergence = F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="none").sum(1)
    return -(divergence * agree)


def jensen_shannon(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """Jensen-Shannon-like divergence (N,) ≥ 0 of student and teacher, as DeepInversion measures disagreement.

    It is ½ KL(M ‖ P) + ½ KL(M ‖ Q) with M = (P + Q)/2, the direction of Yin et al.'s code, and the
    probabilities are clipped to [0.01, 0.99] so that one confident class does not drown the others.

    Args:
        student_logits, teacher_logits: (N, C), unnormalised; symmetric in both.
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
        logits: (N, C), unnormalised.

    Returns:
        Scalar in [-log C, 0].
    """
    mean = logits.softmax(1).mean(0)
    return torch.xlogy(mean, mean).sum()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference (N,) of neighbours, summed over the four directions of neighbourhood.

    Args:
        images: (N, C, H, W), both sides at least 2.
    """
    pairs = (
        (images[:, :, :, :-1], images[:, :, :, 1:]),
        (images[:, :, :-1, :], images[:, :, 1:, :]),
        (images[:, :, :-1, 1:], images[:, :, 1:, :-1]),
        (images[:, :, :-1, :-1], images[:, :, 1:, 1:]),
    )
    return torch.stack([(one - other).abs().mean((1, 2, 3)) for one, other in pairs]).sum(0)
