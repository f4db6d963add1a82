"""Trains a student to answer like its teacher: one call of ``step`` is one optimizer step on one batch.

A step is launched and not waited for: losses add up on the device and come to the host only with
``metrics``. Everything random comes from one generator on the CPU and the learning rate from the step's
number, so a trainer that loads a ``state_dict`` goes on bit by bit like the one that saved it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distiller.global_batch_norm import global_statistics
from distiller.kd_losses import build_kd_loss
from distiller.procedural import ProceduralImages
from distiller.ranks import Ranks
from shared import seeds
from shared.errors import UserError
from shared.networks.batch_norm import layers_with_statistics
from shared.networks.devices import explain_out_of_memory
from shared.networks.folding import folded
from shared.networks.image_operations import BatchAugmentation, BatchMixing, Normalization, to_pixels
from shared.networks.precision import Precision, choose_precision
from shared.specs import DistillationSpec, InputSpec
from shared.specs.precision import PrecisionName
from shared.tasks.base import Task


class Trainer:
    """SGD with momentum, or AdamW, on the distillation loss, as the spec says.

    Both networks are moved to the device in channels_last format, which makes a step about a fifth
    faster on a CPU (resnet20 → resnet8 and wrn16_1 → wrn16_1) and suits tensor cores. The teacher is put
    into eval mode and only ever run without gradients.

    Args:
        spec: with ``steps`` resolved.
        student: normalized images (N, C, H, W) → what the task takes for logits; trained in place from the
            weights it comes with.
        teacher: likewise; unchanged. What is asked is a copy with its BatchNorm layers folded into its convolutions,
            where that says the same.
        task: what both networks do.
        input: shape and normalization of the images.
        seed: of the augmentation, of the student's own randomness (dropout) and of the draws of a caller
            that shares ``generator``.
        device: where to compute.
        precision: what networks compute in; ``JobSpec.precision``.
        ranks: the processes that share each batch; None for this one alone.

    Raises:
        ValueError: the spec's steps are not resolved, or its crop padding exceeds the images.
        UserError: ``batch_too_small``: a rank would get no image.
    """

    def __init__(
        self,
        spec: DistillationSpec,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        input: InputSpec,
        seed: int,
        device: torch.device,
        precision: PrecisionName = "float32",
        ranks: Ranks | None = None,
    ) -> None:
        if spec.steps is None:
            raise ValueError("distillation.steps is not resolved; take the spec from a validated JobSpec")
        self.spec = spec
        self.steps = spec.steps
        self.device = device
        self.student = _channels_last(student, device)
        drawn = round(spec.batch_size * spec.procedural_share) if layers_with_statistics(teacher) else 0
        self.images_from_shards = spec.batch_size - drawn
        """Of each batch; the others are drawn."""
        self._drawn = drawn
        self._procedural: ProceduralImages | None = None
        if drawn:
            self._procedural = ProceduralImages(input, seed, teacher.to(device), device, self.steps * drawn)
        self.teacher = _channels_last(_inference_form(teacher.to(device).eval(), task, input), device)
        self.augment = BatchAugmentation(spec.augmentation, (input.height, input.width))
        self.mix = None if spec.mix is None else BatchMixing(spec.mix, spec.mix_alpha)
        self.normalize = Normalization(input).to(device)
        self.task = task
        self.loss = build_kd_loss(spec, task).to(device)
        self.generator = seeds.generator(seed, seeds.TRAINING)
        """Saved with the trainer. Pass it to ``ImagePool.sample`` too and there is no other to keep."""
        self.step_count = 0
        self._dtype = torch.promote_types(next(student.parameters()).dtype, torch.float32)
        self._optimizer = _optimizer(spec, [*self.student.parameters(), *self.loss.parameters()])
        self.ranks = ranks or Ranks()
        if spec.batch_size < 2 * self.ranks.count:
            raise UserError(
                "batch_too_small",
                f"distillation.batch_size is {spec.batch_size}, which {self.ranks.count} ranks cannot share; use "
                f"{2 * self.ranks.count} or more, or a smaller DFKD_DISTILLER_PROCESSES",
            )
        self.precision = choose_precision(precision, device)
        self._scaler = self.precision.gradient_scaler()
        self._loss_sum = torch.zeros((), device=device, dtype=self._dtype)
        self._own_loss_sum = torch.zeros(
            (), device=device, dtype=self._dtype
        )  # of this rank's parts, until all have settled
        self._comparison = _Comparison(self.student, self.loss, task, self.precision)
        self._averaging = self.ranks.averaging(self._comparison)
        self._steps_in_sum = 0

    @property
    def learning_rate(self) -> float:
        """Step size of the next step."""
        return learning_rate_at(self.step_count, self.spec, self.steps)

    def prepare(self, check: Callable[[], None]) -> None:
        """What the first step would do before it, which may take minutes; ``check`` is called meanwhile."""
        if self._procedural is not None:
            self._procedural.prepare(check)

    def step(self, batch: Tensor) -> None:
        """One step; ``metrics`` tells how the steps went.

        Args:
            batch: uint8 (N, C, H, W), ``images_from_shards`` of them; best on the device already, or pinned.
                Procedural images join them here. At least 2 in all, for BatchNorm.

        Raises:
            UserError: ``out_of_memory``, or ``wrong_output_shape`` when a network's logits are not the task's.
        """
        count = len(batch) + self._drawn
        with explain_out_of_memory("distillation.batch_size", count):
            images = self._prepare(batch)
            for group in self._optimizer.param_groups:
                group["lr"] = self.learning_rate
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._compare(images, count)
            self._scaler.scale(loss).backward()
            if self.spec.max_gradient_norm is not None:
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self.student.parameters(), self.spec.max_gradient_norm)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        (self._loss_sum if self.ranks.count == 1 else self._own_loss_sum).add_(loss.detach())
        self._steps_in_sum += 1
        self.step_count += 1

    def settle(self) -> None:
        """Puts the ranks' losses together; called by all ranks before anybody asks for them."""
        if self.ranks.count > 1:
            self.ranks.average(self._own_loss_sum)
            self._loss_sum += self._own_loss_sum
            self._own_loss_sum.zero_()

    def metrics(self) -> dict[str, float]:
        """``learning_rate`` and, if there were steps since the last call, their mean ``loss``. Waits for the device.

        Raises:
            UserError: ``non_finite_loss``: one of these steps had a loss that is infinite or not a number.
        """
        result = {"learning_rate": self.learning_rate}
        if self._steps_in_sum > 0:
            result["loss"] = self._mean_loss()
            self._loss_sum.zero_()
            self._steps_in_sum = 0
        return result

    def state_dict(self) -> dict[str, Any]:
        """All that a successor needs; loads with ``torch.load(weights_only=True)``.

        The tensors are those in use, not copies: save them before the next step.

        Raises:
            UserError: ``non_finite_loss``, so that no ruined student is ever saved.
        """
        self._mean_loss()
        return {
            "step_count": self.step_count,
            "student": self.student.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self.generator.get_state(),
            "loss_sum": self._loss_sum,
            "steps_in_sum": self._steps_in_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, with a trainer built from the same spec and networks."""
        self.step_count = state["step_count"]
        self.student.load_state_dict(state["student"])
        self.loss.load_state_dict(state.get("loss", {}))  # the first version's checkpoints have none
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty when saved on a device that needs no scaling
            self._scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"].cpu())
        self._loss_sum.copy_(state["loss_sum"])
        self._steps_in_sum = state["steps_in_sum"]

    def _prepare(self, batch: Tensor) -> Tensor:
        """This rank's part, with procedural images: augmented, mixed, normalized, channels_last.

        Bytes are augmented, since they are a quarter of the memory. All ranks draw for the whole batch: what happens to
        an image does not depend on their number.
        """
        batch = batch.to(self.device, non_blocking=True)
        if self._procedural is not None:
            batch = torch.cat([batch, self._procedural.sample(self._drawn, self.generator)])
        augmented = self.augment(batch, self.generator)
        pixels = to_pixels(augmented.to(memory_format=torch.channels_last)).to(self._dtype)
        if self.mix is not None:
            pixels = self.mix(pixels, self.generator)
        images: Tensor = self.normalize(pixels[self.ranks.part(len(pixels))])
        return images

    def _compare(self, images: Tensor, batch_size: int) -> Tensor:
        """The loss of this rank's images, weighted so that the mean over the ranks is that of the batch."""
        seed = self._draw_seed()
        devices = [self.device] if self.device.type == "cuda" else []
        self.student.train()
        with torch.random.fork_rng(devices):
            with torch.no_grad(), self.precision.autocast():
                teacher_logits = self.task.logits(self.teacher(images), images.shape)
            # Dropout and its like draw from torch's global state, which no state_dict holds.
            torch.manual_seed(seed + self.ranks.rank)
            with global_statistics(self.student, self.ranks):
                loss: Tensor = self._averaging(images, teacher_logits)
        weight = len(images) * self.ranks.count / batch_size
        return loss if weight == 1 else loss * weight

    def _draw_seed(self) -> int:
        """The one value that a step reads. It is drawn on the CPU, so nobody waits for a device."""
        return int(torch.randint(2**62, (), generator=self.generator))

    def _mean_loss(self) -> float:
        mean = self._loss_sum.item() / max(self._steps_in_sum, 1)
        if not math.isfinite(mean):
            raise UserError(
                "non_finite_loss",
                f"the distillation loss became {mean} within the {self._steps_in_sum} steps before step "
                f"{self.step_count}; use a distillation.learning_rate below {self.spec.learning_rate:g}",
            )
        return mean


class _Comparison(nn.Module):
    """Student and loss as one module, so that all that is trained takes part in the averaging of gradients."""

    def __init__(self, student: nn.Module, loss: nn.Module, task: Task, precision: Precision) -> None:
        super().__init__()
        self.student, self.loss = student, loss
        self._task, self._precision = task, precision

    def forward(self, images: Tensor, teacher_logits: Tensor) -> Tensor:
        """Scalar loss of normalized images."""
        with self._precision.autocast():
            student_logits = self._task.logits(self.student(images), images.shape, network="the student")
        loss: Tensor = self.loss(_at_least_float32(student_logits), _at_least_float32(teacher_logits))
        return loss


def learning_rate_at(step: int, spec: DistillationSpec, steps: int) -> float:
    """Half a cosine from ``learning_rate`` to ``final_learning_rate`` at ``steps`` and beyond.

    With a warm-up it begins after that; before, the rate rises along a line, which ends at ``learning_rate``.

    Args:
        step: from 0; the number of steps already made.
        steps: in all.
    """
    warmup = spec.warmup_steps_of(steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    remaining = (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1))) / 2
    return spec.final_learning_rate + (spec.learning_rate - spec.final_learning_rate) * remaining


def _optimizer(spec: DistillationSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    # Fused: one kernel, and the only form that skips an overflown float16 step without a sync.
    common: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay, "fused": True}
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **common)
    return torch.optim.SGD(parameters, momentum=spec.momentum, **common)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _inference_form(teacher: nn.Module, task: Task, input: InputSpec) -> nn.Module:
    """The teacher as it is asked thousands of times."""
    first = next(teacher.parameters(), None)
    if first is None:
        return teacher
    example = torch.randn((2, *input.shape), generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    return folded(teacher, example, lambda output: task.logits(output, example.shape))


def _channels_last(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself, moved."""
    network.to(device)
    network.to(memory_format=torch.channels_last)
    return network
