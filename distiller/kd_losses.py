"""The distillation loss: how far the student's view of a batch is from the teacher's.

It is that of Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) of the distributions softened by the temperature T, mean over the batch.

    Gradients shrink with 1/T², so the factor keeps their size, and with it the learning rate, independent of
    the temperature (section 2 of the paper).

    Args:
        student_logits, teacher_logits: (N, C), unnormalised.
        temperature: above 0; larger values weigh the wrong classes more evenly.

    Returns:
        Scalar ≥ 0; 0 where both distributions are equal. Gradients flow through both arguments.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
