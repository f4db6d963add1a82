"""The distillation losses: how far the student's view of a batch is from the teacher's.

A loss is a module that a job names in ``distillation.loss``; parameters of its own are trained and saved with the
student. ``kl`` is that of Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), ``l1`` that of Fang et
al., "Data-Free Adversarial Distillation" (2019). Another package adds one with an entry point
``fast_dfkd.kd_losses`` that leads to a subclass of ``KDLoss``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from shared.plugins import plugins
from shared.specs import DistillationSpec
from shared.tasks.base import Task


class KDLoss(nn.Module, ABC):
    """A distillation loss.

    Args:
        spec: of the job's distillation.
        task: what the logits mean.
    """

    def __init__(self, spec: DistillationSpec, task: Task) -> None:
        super().__init__()
        self.spec = spec
        self.task = task

    @abstractmethod
    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss of a batch, a scalar ≥ 0.

        Args:
            student_logits, teacher_logits: (N, C, …) in float32, unnormalised.
        """


class KLDivergence(KDLoss):
    """T² · KL(teacher ‖ student) of the distributions softened by the temperature T, mean over all answers.

    Gradients shrink with 1/T², so the factor keeps their size, and with it the learning rate, independent of
    the temperature (section 2 of the paper). An image's many answers are averaged and not summed, so the loss
    does not grow with the resolution either.
    """

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """0 where both distributions are equal. Gradients flow through both arguments."""
        temperature = self.spec.temperature
        divergence = self.task.divergence(student_logits / temperature, teacher_logits / temperature)
        return divergence.mean() * temperature**2


class L1Distance(KDLoss):
    """The mean absolute difference of the logits themselves."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """0 where both are equal. Gradients flow through both arguments."""
        return (student_logits - teacher_logits).abs().mean()


KD_LOSSES: Final[Mapping[str, type[KDLoss]]] = {"kl": KLDivergence, "l1": L1Distance}


def build_kd_loss(spec: DistillationSpec, task: Task) -> KDLoss:
    """The loss that a spec names.

    Raises:
        TypeError: what another package brings under the name is no ``KDLoss``.
    """
    loss = KD_LOSSES.get(spec.loss)
    if loss is None:
        loss = plugins("fast_dfkd.kd_losses")[spec.loss].load()
        if not (isinstance(loss, type) and issubclass(loss, KDLoss)):
            raise TypeError(f"the entry point `{spec.loss}` of fast_dfkd.kd_losses leads to {loss!r}, no KDLoss")
    return loss(spec, task)
