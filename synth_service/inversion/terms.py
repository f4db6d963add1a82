"""The terms of an inversion's loss: named, weighted, and free of the loop that adds them up.

A term is called once in every inner step with what the networks said of it (``Forward``) and gives a value for each
image, or one for the whole batch. Its name is what charts, tables and metrics call it. A method lists its terms in
``Inverter.terms``; a new term is a class here and a line there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.batch_norm import layers_with_statistics
from shared.specs import InputSpec
from shared.specs.precision import PrecisionName
from shared.tasks.base import Task
from synth_service.inversion.batch_norm import BatchNormMatching
from synth_service.inversion.losses import class_balance, jensen_shannon


@dataclass(frozen=True)
class Setup:
    """What every method gets besides its spec.

    Args:
        teacher: takes normalized images of ``input``; on ``device``. Kept as found outside a round.
        task: what the teacher's logits mean.
        input: shape and normalization of the images.
        seed: of everything random; equal seeds give equal bytes on the same machine.
        device: where to compute.
        precision: what networks compute in; ``JobSpec.precision``.
    """

    teacher: nn.Module
    task: Task
    input: InputSpec
    seed: int
    device: torch.device
    precision: PrecisionName = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """float64 for a teacher of float64 parameters, float32 for any other."""
        first = next(self.teacher.parameters(), None)
        return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Forward:
    """One inner step's images and what the frozen networks said of them, with gradients to the images."""

    images: Tensor
    """(N, C, H, W) pixels in [0, 1], as made."""
    inputs: Tensor
    """(N, C, H, W) what the networks saw: augmented and normalized."""
    targets: Tensor
    """(N, …) as ``Task.match`` settled them."""
    teacher_logits: Tensor
    """(N, num_classes, …)."""
    student_logits: Tensor | None
    """Likewise, where some term needs the student and there is one."""


class LossTerm(ABC):
    """One term. Most need no more than ``name``, ``weight`` and the call."""

    name: str
    needs_student = False
    """Whether it is left out while there is no student."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, forward: Forward) -> Tensor:
        """Unweighted: (N,), one value for each image, or (), one for the batch."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Open while a round runs; a term that has to see inside the teacher hooks into it here."""
        yield

    def finish_round(self) -> None:  # noqa: B027  (most terms keep nothing)
        """Called once after a round's inner loop: take what it learned into the lasting state."""

    def state_dict(self) -> dict[str, Any]:
        """What later rounds depend on: tensors, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue from what ``state_dict`` returned."""


def weighted(*terms: LossTerm | float) -> list[LossTerm]:
    """The terms that count: without those of weight 0, and without a 0 in the place of one that cannot be made."""
    return [term for term in terms if isinstance(term, LossTerm) and term.weight > 0]


class OneHot(LossTerm):
    """Cross-entropy of the teacher's prediction to what the image should show."""

    name = "one_hot"

    def __init__(self, weight: float, task: Task) -> None:
        super().__init__(weight)
        self._task = task

    def __call__(self, forward: Forward) -> Tensor:
        """(N,)."""
        return self._task.cross_entropy(forward.teacher_logits, forward.targets)


class BatchNormStatistics(LossTerm):
    """The distance of the images' BatchNorm statistics from those that the teacher was trained with.

    Args:
        weight: of the term.
        teacher: the network to match.
        momentum: see ``BatchNormMatching``.
        layer_weights: a factor for each of its layers, in module order; None weighs all alike.
        balanced: see ``BatchNormMatching.loss``.

    Raises:
        UserError: ``teacher_has_no_batchnorm``.
    """

    name = "bn"

    def __init__(
        self,
        weight: float,
        teacher: nn.Module,
        *,
        momentum: float = 0.0,
        layer_weights: Sequence[float] | None = None,
        balanced: bool = False,
    ) -> None:
        super().__init__(weight)
        if not layers_with_statistics(teacher):
            raise UserError(
                "teacher_has_no_batchnorm",
                f"synthesis.bn is {weight:g}, but the teacher has no BatchNorm layer with running statistics; "
                "set synthesis.bn to 0 to invert it with the other terms alone",
            )
        self.matching = BatchNormMatching(teacher, momentum, layer_weights, balanced=balanced)

    def __call__(self, forward: Forward) -> Tensor:
        """()."""
        return self.matching.loss()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the base class."""
        with self.matching.observing():
            yield

    def finish_round(self) -> None:
        """See the base class."""
        self.matching.update_average()

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        return {"average": self.matching.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        average = state["average"]
        device = self.matching.layers[0].running_mean.device
        self.matching.average = None if average is None else average.clone().to(device)


class Adversarial(LossTerm):
    """Minus KL(teacher ‖ student) where both choose the same class (decision-adversarial distillation).

    Drives images to where the student imitates the teacher's decision but not its distribution. Per answer, mean
    over an image's answers; those on which they differ count as 0.
    """

    name = "adversarial"
    needs_student = True

    def __init__(self, weight: float, task: Task) -> None:
        super().__init__(weight)
        self._task = task

    def __call__(self, forward: Forward) -> Tensor:
        """(N,)."""
        assert forward.student_logits is not None
        agree = self._task.agreement(forward.student_logits, forward.teacher_logits)
        divergence = self._task.divergence(forward.student_logits, forward.teacher_logits)
        return -self._task.per_image(divergence * agree)


class Competition(LossTerm):
    """1 - Jensen-Shannon divergence: low where the student still disagrees (DeepInversion's adaptive term)."""

    name = "adversarial"
    needs_student = True

    def __init__(self, weight: float, task: Task) -> None:
        super().__init__(weight)
        self._task = task

    def __call__(self, forward: Forward) -> Tensor:
        """(N,)."""
        assert forward.student_logits is not None
        divergence = jensen_shannon(forward.student_logits, forward.teacher_logits)
        return 1 - self._task.per_image(divergence).clamp(0, 1)


class Discrepancy(LossTerm):
    """-log(1 + mean absolute difference of the logits): what DFAD's generator minimizes, whatever the decisions."""

    name = "adversarial"
    needs_student = True

    def __call__(self, forward: Forward) -> Tensor:
        """()."""
        assert forward.student_logits is not None
        return -(forward.student_logits - forward.teacher_logits).abs().mean().log1p()


class Balance(LossTerm):
    """Negative entropy of the batch's mean prediction: low when all classes occur alike."""

    name = "balance"

    def __call__(self, forward: Forward) -> Tensor:
        """()."""
        return class_balance(forward.teacher_logits)


class ImagePrior(LossTerm):
    """A prior on the pixels alone.

    Args:
        name: of the term.
        weight: of the term.
        measure: images → (N,) or ().
        of: which images of a forward pass are measured, on which scale.
    """

    def __init__(
        self, name: str, weight: float, measure: Callable[[Tensor], Tensor], *, of: Callable[[Forward], Tensor]
    ) -> None:
        super().__init__(weight)
        self.name = name
        self._measure = measure
        self._of = of

    def __call__(self, forward: Forward) -> Tensor:
        """(N,) or ()."""
        return self._measure(self._of(forward))
