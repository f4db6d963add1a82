"""What an inversion minimizes, and what it keeps.

``Objective`` weighs the losses of one forward pass through the frozen teacher (and, for the adversarial
term, the student). ``BestImages`` keeps, image by image, the inner step at which an image did best. Both
leave every number on the device: the host looks once per round, in ``BestImages.fetch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.devices import autocast, reduced_precision
from shared.networks.image_operations import Normalization, to_bytes
from shared.specs import InputSpec, SynthesisBase
from synth_service.inversion.batch_norm import BatchNormMatching, layers_with_statistics
from synth_service.inversion.losses import one_hot

FLOAT16_LOSS_SCALE = 256.0
"""Lifts gradients over float16's smallest numbers on devices without bfloat16; constant, so it needs no sync."""


@dataclass(frozen=True)
class SyntheticBatch:
    """One round's images, on the host."""

    images: Tensor
    """(N, C, H, W) uint8, rounded."""
    targets: Tensor
    """(N,) int64: the class that each image was made for."""
    teacher_top1: Tensor
    """(N,) int64: the class that the teacher saw, in the augmented view by which the image was chosen."""
    teacher_confidence: Tensor
    """(N,) float32 in [0, 1]: the teacher's probability of that class, in the same view."""
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
    """(N, num_classes)."""
    targets: Tensor
    """(N,) the classes that the one-hot term asked for."""


class Objective:
    """Weighted sum of the BatchNorm, one-hot and adversarial losses.

    Args:
        spec: gives the weights ``bn``, ``one_hot`` and ``adversarial``.
        teacher: on ``device``.
        disagreement: per-image adversarial loss of (student_logits, teacher_logits).
        bn_momentum: see ``BatchNormMatching``.

    Raises:
        UserError: ``teacher_has_no_batchnorm``.
    """

    def __init__(
        self,
        spec: SynthesisBase,
        teacher: nn.Module,
        *,
        num_classes: int,
        input: InputSpec,
        disagreement: Callable[[Tensor, Tensor], Tensor],
        bn_momentum: float,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.teacher = teacher
        self.student: nn.Module | None = None
        self.num_classes = num_classes
        self.disagreement = disagreement
        self.dtype = working_dtype(teacher)
        self.device = device
        self.normalize = Normalization(input).to(device, self.dtype)
        self.matching: BatchNormMatching | None = None
        if spec.bn > 0:
            if not layers_with_statistics(teacher):
                raise UserError(
                    "teacher_has_no_batchnorm",
                    f"synthesis.bn is {spec.bn:g}, but the teacher has no BatchNorm layer with running statistics; "
                    "set synthesis.bn to 0 to invert it with the other terms alone",
                )
            self.matching = BatchNormMatching(teacher, bn_momentum)
        self.loss_scale = FLOAT16_LOSS_SCALE if reduced_precision(device) is torch.float16 else 1.0

    @property
    def opponent(self) -> nn.Module | None:
        """The student, where the adversarial term counts."""
        return self.student if self.spec.adversarial > 0 else None

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, teacher and student are frozen and observed; afterwards they are as found."""
        with ExitStack() as stack:
            stack.enter_context(frozen(self.teacher))
            if self.opponent is not None:
                stack.enter_context(frozen(self.opponent))
            if self.matching is not None:
                stack.enter_context(self.matching.observing())
            yield

    def __call__(self, views: Tensor, targets: Tensor, *, match: bool = False) -> Evaluation:
        """Evaluate pixels in [0, 1] (N, C, H, W), as augmented, for their target classes (N,).

        With ``match`` the targets are first dealt out anew, see ``match_targets``.
        """
        normalized = self.normalize(views).contiguous(memory_format=torch.channels_last)
        student_logits = None
        with autocast(self.device):
            teacher_logits = self.teacher(normalized)
            if self.opponent is not None:
                student_logits = self.opponent(normalized).to(self.dtype)
        if not isinstance(teacher_logits, Tensor) or teacher_logits.shape != (len(views), self.num_classes):
            seen = tuple(teacher_logits.shape) if isinstance(teacher_logits, Tensor) else type(teacher_logits).__name__
            raise UserError(
                "wrong_output_shape",
                f"the teacher must return logits of shape ({len(views)}, {self.num_classes}) "
                f"for {len(views)} images and teacher.num_classes {self.num_classes}, but returned {seen}",
            )
        teacher_logits = teacher_logits.to(self.dtype)

        if match:
            targets = match_targets(teacher_logits.detach(), targets)
        cross_entropy = one_hot(teacher_logits, targets)
        per_image = self.spec.one_hot * cross_entropy
        terms = {"one_hot": cross_entropy.detach().mean()}
        if self.matching is not None:
            statistics = self.matching.loss()
            per_image = per_image + self.spec.bn * statistics
            terms["bn"] = statistics.detach()
        if student_logits is not None:
            adversarial = self.disagreement(student_logits, teacher_logits)
            per_image = per_image + self.spec.adversarial * adversarial
            terms["adversarial"] = adversarial.detach().mean()
        return Evaluation(per_image, terms, teacher_logits.detach(), targets)

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

    def __init__(self) -> None:
        self.targets = torch.empty(0)
        """(N,) classes that the images were made for."""
        self._lowest: Tensor | None = None
        self._images = self._logits = torch.empty(0)
        self._history: list[dict[str, Tensor]] = []

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) pixels in [0, 1], on the device."""
        return self._images

    def add(self, images: Tensor, evaluation: Evaluation) -> None:
        """One inner step: its pixels (N, C, H, W) and what the objective said of them."""
        images, objective = images.detach(), evaluation.per_image.detach()
        self._history.append(evaluation.terms)
        self.targets = evaluation.targets
        if self._lowest is None:
            self._lowest, self._images, self._logits = objective, images.clone(), evaluation.teacher_logits
            return
        better = objective < self._lowest
        self._lowest = torch.where(better, objective, self._lowest)
        self._images = torch.where(better.view(-1, 1, 1, 1), images, self._images)
        self._logits = torch.where(better.view(-1, 1), evaluation.teacher_logits, self._logits)

    def fetch(self, round_number: int) -> SyntheticBatch:
        """Bring everything to the host, waiting for the device once.

        Raises:
            UserError: ``non_finite_loss``, with the first step and term that blew up.
        """
        confidence, top1 = self._logits.softmax(1).max(1)
        history = {term: torch.stack([step[term] for step in self._history]) for term in self._history[0]}
        images, targets, top1, confidence, *curves = _to_host(
            [to_bytes(self._images).contiguous(), self.targets, top1, confidence.float(), *history.values()]
        )
        loss_history = {term: curve.tolist() for term, curve in zip(history, curves, strict=True)}
        for step in range(len(self._history)):
            for term, curve in loss_history.items():
                if not math.isfinite(curve[step]):
                    raise UserError(
                        "non_finite_loss",
                        f"round {round_number}, inner step {step + 1}: the {term} loss became {curve[step]}; "
                        "use a lower learning rate in synthesis or a lower weight of that term, "
                        "and check that the teacher's checkpoint holds finite numbers",
                    )
        return SyntheticBatch(images, targets, top1, confidence, loss_history)


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


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients; modes and flags of every part are put back as found."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval()
        network.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def working_dtype(network: nn.Module) -> torch.dtype:
    """float64 for a network of float64 parameters, float32 for any other."""
    first = next(network.parameters(), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32


def _to_host(tensors: list[Tensor]) -> list[Tensor]:
    if tensors[0].device.type != "cuda":
        return [tensor.detach().cpu() for tensor in tensors]
    pinned = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for source, target in zip(tensors, pinned, strict=True):
        target.copy_(source.detach(), non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return pinned
