"""What an inversion minimizes, and what it keeps.

``Objective`` adds up the weighted terms of one forward pass through the frozen teacher (and, where a term asks
for it, the student). ``BestImages`` keeps, image by image, the inner step at which an image did best. Both
leave every number on the device: the host looks once per round, in ``BestImages.fetch``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.image_operations import Normalization, to_bytes, to_pixels
from shared.networks.modes import evaluating
from shared.networks.precision import choose_precision
from shared.tasks.base import Task
from synth_service.inversion.terms import Forward, LossTerm, Setup


@dataclass(frozen=True)
class SyntheticBatch:
    """One round's images, on the host."""

    images: Tensor
    """(N, C, H, W) uint8, rounded."""
    targets: Tensor
    """(N, …) int64: what each image was made for, or, where labels follow the pixels, what the teacher sees in it."""
    described: dict[str, Tensor]
    """What the task says of the teacher's answers, (N,) each, such as ``teacher_confidence``: of the augmented view by
    which an image was chosen, or, where labels follow the pixels, of the image as it is."""
    loss_history: dict[str, list[float]]
    """Unweighted loss terms, averaged over the batch, for every inner step."""

    @property
    def losses(self) -> dict[str, float]:
        """The loss terms at the last inner step."""
        return {term: history[-1] for term, history in self.loss_history.items()}


@dataclass(frozen=True)
class Evaluation:
    """The objective at one inner step, on the device."""

    per_image: Tensor
    """(N,) weighted sum of all terms. A term of the whole batch counts the same for each image."""
    terms: dict[str, Tensor]
    """Unweighted scalars."""
    teacher_logits: Tensor
    """(N, num_classes, …)."""
    targets: Tensor
    """(N, …) what the one-hot term asked for."""


class Objective:
    """The weighted sum of a method's terms.

    Args:
        setup: teacher, task and images.
        terms: in the order in which they are added; no name twice.
    """

    def __init__(self, setup: Setup, terms: Sequence[LossTerm]) -> None:
        names = [term.name for term in terms]
        if len(set(names)) != len(names):
            raise ValueError(f"two terms of one name among {', '.join(names)}")
        self.terms = tuple(terms)
        self.teacher = setup.teacher
        self.student: nn.Module | None = None
        self.task = setup.task
        self.dtype = setup.dtype
        self.device = setup.device
        self.normalize = Normalization(setup.input, setup.dtype).to(setup.device)
        self.precision = choose_precision(setup.precision, setup.device)
        self.loss_scale = self.precision.loss_scale

    @property
    def opponent(self) -> nn.Module | None:
        """The student, where a term asks for it."""
        return self.student if any(term.needs_student for term in self.terms) else None

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, teacher and student are frozen and observed; afterwards they are as found."""
        with ExitStack() as stack:
            stack.enter_context(frozen(self.teacher))
            if self.opponent is not None:
                stack.enter_context(frozen(self.opponent))
            for term in self.terms:
                stack.enter_context(term.watching())
            yield

    def __call__(
        self, views: Tensor, targets: Tensor, *, images: Tensor | None = None, deal: bool = False
    ) -> Evaluation:
        """Evaluate pixels in [0, 1] (N, C, H, W), as augmented, for their targets (N, …).

        Args:
            views: what the networks are to see.
            targets: see ``Task.targets``.
            images: the pixels before augmentation, for terms that look at those; the views themselves by default.
            deal: see ``Task.match``.
        """
        return self.evaluate(self.normalize(views), targets, images=views if images is None else images, deal=deal)

    def evaluate(self, inputs: Tensor, targets: Tensor, *, images: Tensor, deal: bool = False) -> Evaluation:
        """The same of inputs that are normalized already."""
        normalized = inputs.contiguous(memory_format=torch.channels_last)
        student_logits = None
        with self.precision.autocast():
            teacher_logits = self._ask(self.teacher, normalized, "the teacher")
            if self.opponent is not None:
                student_logits = self._ask(self.opponent, normalized, "the student")
        targets = self.task.match(teacher_logits.detach(), targets, deal=deal)
        forward = Forward(images, inputs, targets, teacher_logits, student_logits)
        values: dict[str, Tensor] = {}
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for term in self.terms:
            if term.needs_student and student_logits is None:
                continue
            value = term(forward)
            total = total + term.weight * value
            values[term.name] = value.detach() if value.ndim == 0 else value.detach().mean()
        return Evaluation(total.expand(len(inputs)), values, teacher_logits.detach(), targets)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """The teacher's logits for pixels in [0, 1], as they are."""
        with self.precision.autocast():
            return self._ask(
                self.teacher, self.normalize(images).contiguous(memory_format=torch.channels_last), "the teacher"
            )

    def _ask(self, network: nn.Module, inputs: Tensor, name: str) -> Tensor:
        return self.task.logits(network(inputs), inputs.shape, network=name).to(self.dtype)

    def backward(self, evaluation: Evaluation, parameters: list[Tensor]) -> None:
        """Set ``grad`` of these leaves, replacing what was there; no weight gradient of a network is computed.

        It is left to ``backward`` rather than taken from ``torch.autograd.grad`` because only the former
        lays a gradient out in memory like its parameter, which fused optimizers take for granted.
        """
        for parameter in parameters:
            parameter.grad = None
        (evaluation.per_image.mean() * self.loss_scale).backward(inputs=parameters)
        if self.loss_scale != 1:
            torch._foreach_div_(gradients_of(parameters), self.loss_scale)


def gradients_of(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters)
    return gradients


class BestImages:
    """For each image of a batch, the inner step with its lowest objective so far.

    The BatchNorm term belongs to the batch and not to an image. It counts with its value at that step, so
    an early step is preferred for an image only if what the image gains there outweighs the worse
    statistics of the whole batch; and the mean of what is compared is the loss that was minimized.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.targets = torch.empty(0)
        """(N, …) what the images were made for."""
        self._lowest: Tensor | None = None
        self._images = self._logits = torch.empty(0)
        self._history: list[dict[str, Tensor]] = []

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) pixels in [0, 1], on the device."""
        return self._images

    def add(self, images: Tensor, evaluation: Evaluation, *, keep: bool = True) -> None:
        """One inner step: its pixels (N, C, H, W) and what the objective said of them.

        With ``keep`` off only the losses are noted: the step was about other images than those to be kept.
        """
        self._history.append(evaluation.terms)
        if not keep:
            return
        images, objective = images.detach(), evaluation.per_image.detach()
        self.targets = evaluation.targets
        if self._lowest is None:
            self._lowest, self._images, self._logits = objective, images.clone(), evaluation.teacher_logits
            return
        better = objective < self._lowest
        self._lowest = torch.where(better, objective, self._lowest)
        self._images = torch.where(better.view(-1, 1, 1, 1), images, self._images)
        if not self._task.labels_follow_pixels:
            logits = evaluation.teacher_logits
            self._logits = torch.where(better.view(-1, *(1,) * (logits.ndim - 1)), logits, self._logits)

    def fetch(self, objective: Objective, round_number: int) -> SyntheticBatch:
        """Bring everything to the host, waiting for the device once.

        Args:
            objective: that the images were made with.
            round_number: for errors.

        Raises:
            UserError: ``non_finite_loss``, with the first step and term that blew up.
        """
        task = self._task
        stored = to_bytes(self._images).contiguous()
        logits, targets = self._logits, self.targets
        if task.labels_follow_pixels:
            logits = objective.answer(to_pixels(stored).to(objective.dtype))
            targets = task.relabel(logits, targets)
        described = task.describe(logits)
        history = {term: torch.stack([step[term] for step in self._history]) for term in self._history[0]}
        fetched = iter(_to_host([stored, targets, *described.values(), *history.values()]))
        images, targets = next(fetched), next(fetched)
        described = {name: next(fetched) for name in described}
        loss_history = {term: next(fetched).tolist() for term in history}
        for step in range(len(self._history)):
            for term, curve in loss_history.items():
                if not math.isfinite(curve[step]):
                    raise UserError(
                        "non_finite_loss",
                        f"round {round_number}, inner step {step + 1}: the {term} loss became {curve[step]}; "
                        "use a lower learning rate in synthesis or a lower weight of that term, "
                        "and check that the teacher's checkpoint holds finite numbers",
                    )
        return SyntheticBatch(images, targets, described, loss_history)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients; modes and flags of every part are put back as found."""
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        with evaluating(network):
            network.requires_grad_(False)
            yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def _to_host(tensors: list[Tensor]) -> list[Tensor]:
    if tensors[0].device.type != "cuda":
        return [tensor.detach().cpu() for tensor in tensors]
    pinned = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for source, target in zip(tensors, pinned, strict=True):
        target.copy_(source.detach(), non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return pinned
