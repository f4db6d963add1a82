"""DeepInversion (Yin et al., CVPR 2020): every batch's pixels are optimized from noise, over thousands of steps.

It is the baseline that Fast DFKD is measured against, so it is given what its authors give it: jitter and
flip, image priors, the Jensen-Shannon competition with the student, and clipping to valid pixels.

What Adam moves is by default ``4·(pixels - 0.5)``: the scale on which natural images have about unit variance, so
that the published step size and priors mean the same whatever normalization the teacher was trained with. With
``scale: normalized`` it is the network's own input, and the priors look at what the network saw, as in the
authors' code; ``tests`` compare that form with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import seeds
from shared.networks.batch_norm import layers_with_statistics
from shared.specs import DeepInversionSynthesis
from shared.specs.synthesis import PixelSynthesis
from synth_service.inversion import losses
from synth_service.inversion.attention import AttentionEntropy
from synth_service.inversion.base import Check, Inverter
from synth_service.inversion.objective import BestImages, Evaluation
from synth_service.inversion.terms import (
    Balance,
    BatchNormStatistics,
    Competition,
    Forward,
    ImagePrior,
    LossTerm,
    OneHot,
    weighted,
)

PIXEL_SCALE = 4.0
VARIATIONS = {"l1": losses.total_variation, "l2": losses.total_variation_l2}
NORMS = {"squared": losses.squared_norm, "image": losses.norm, "batch": losses.batch_norm_of_pixels}


class View(NamedTuple):
    """What is settled about one step's view before it is made."""

    shift: tuple[int, int]
    """(down, right), in pixels."""
    done: float
    """Share of the stage's steps that are done."""


D = TypeVar("D", bound=PixelSynthesis)


class PixelInverter(Inverter[D]):
    """Optimizes pixels; keeps nothing from round to round but the round number.

    Subclasses may see the images differently (``augment``).
    """

    def terms(self) -> Sequence[LossTerm]:
        """The classifier's losses, and the priors on pixels."""
        spec, task, teacher = self.spec, self.setup.task, self.setup.teacher
        factors = [spec.bn_first_layer, *[1.0] * (len(layers_with_statistics(teacher)) - 1)]
        variation, norm = VARIATIONS[spec.total_variation_norm], NORMS[spec.l2_norm]
        if spec.total_variation_goal is not None:
            variation = self._distance_from_goal
        return weighted(
            OneHot(spec.one_hot, task),
            spec.bn and BatchNormStatistics(spec.bn, teacher, layer_weights=factors),
            Competition(spec.adversarial, task),
            Balance(spec.balance),
            spec.attention and AttentionEntropy(spec.attention, teacher),
            ImagePrior("total_variation", spec.total_variation, variation, of=self._scaled),
            ImagePrior("l2", spec.l2, norm, of=self._scaled),
        )

    def _distance_from_goal(self, images: Tensor) -> Tensor:
        """How far the batch's variation is from what this round drew."""
        assert self.spec.total_variation_goal is not None
        lowest, highest = self.spec.total_variation_goal
        drawn = float(torch.rand((), generator=seeds.generator(self.setup.seed, f"variation of round {self.rounds}")))
        goal = (lowest + (highest - lowest) * drawn) * math.sqrt(images.numel())
        return (losses.total_variation_l2(images) - goal).abs()

    def _scaled(self, forward: Forward) -> Tensor:
        """What the priors look at."""
        if self.spec.scale == "normalized":
            return forward.inputs
        return PIXEL_SCALE * (forward.images - 0.5)

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """See the base class."""
        variable = self.draw_start(len(targets), random).requires_grad_()
        best = BestImages(self.setup.task)
        if self.spec.pooled_steps:
            self._stage(variable, targets, random, check, best, steps=self.spec.pooled_steps, pooled=True)
        self._stage(variable, targets, random, check, best, steps=self.spec.steps, pooled=False)
        return best

    def _stage(
        self,
        variable: Tensor,
        targets: Tensor,
        random: torch.Generator,
        check: Check,
        best: BestImages,
        *,
        steps: int,
        pooled: bool,
    ) -> None:
        """So many steps with an optimizer of their own; what is seen at half the size is no candidate to be kept."""
        adam = torch.optim.Adam([variable], lr=self.spec.learning_rate, betas=self.spec.adam_betas, fused=True)
        shifts = self.draw_shifts(steps, self.spec.jitter // 2 if pooled else self.spec.jitter)
        for step in range(steps):
            check()
            adam.param_groups[0]["lr"] = self._learning_rate(step, steps)
            seen = F.avg_pool2d(variable, 2) if pooled else variable
            evaluation = self._look(seen, targets, View(shifts[step], step / steps), random)
            targets = evaluation.targets
            best.add(self._to_pixels(variable), evaluation, keep=not pooled and self.may_keep(step, steps))
            self.objective.backward(evaluation, [variable])
            adam.step()
            self._clip(variable)

    def _look(self, seen: Tensor, targets: Tensor, view: View, random: torch.Generator) -> Evaluation:
        if self.spec.scale == "normalized":
            inputs = self.augment(seen, view, random)
            return self.objective.evaluate(inputs, targets, images=self._to_pixels(seen))
        pixels = self._to_pixels(seen)
        return self.objective(self.augment(pixels, view, random), targets, images=pixels)

    def may_keep(self, step: int, steps: int) -> bool:
        """Whether the images of a step may be those that are kept, if their objective is the lowest."""
        return True

    def commit(self) -> None:
        """Nothing lasts."""

    def draw_start(self, count: int, random: torch.Generator) -> Tensor:
        """Noise (count, C, H, W) on the scale that Adam works on."""
        noise = torch.randn((count, *self.input.shape), generator=random, dtype=self.dtype, device=self.device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        return noise if self.spec.scale == "normalized" else noise.clamp_(-PIXEL_SCALE / 2, PIXEL_SCALE / 2)

    def draw_shifts(self, steps: int, reach: int) -> list[tuple[int, int]]:
        """(down, right) of every step. Drawn on the host, where they are needed, so that no step waits."""
        cpu = seeds.generator(self.setup.seed, f"{steps} shifts by {reach} of round {self.rounds}")
        drawn = torch.randint(-reach, reach + 1, (steps, 2), generator=cpu)
        return [(down, right) for down, right in drawn.tolist()]

    def draw_mirrored(self, count: int, random: torch.Generator) -> Tensor:
        """(count, 1, 1, 1): which images to mirror, each with probability one half."""
        return torch.rand(count, 1, 1, 1, generator=random, device=self.device) < 0.5

    def _learning_rate(self, step: int, steps: int) -> float:
        """Of one step of a stage: a linear warm-up, then constant or down half a cosine."""
        warmup, base = self.spec.warmup_steps, self.spec.learning_rate
        if step < warmup:
            return base * (step + 1) / warmup
        if self.spec.learning_rate_schedule == "constant":
            return base
        return base / 2 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    def augment(self, images: Tensor, view: View, random: torch.Generator) -> Tensor:
        """What the networks see: all images shifted alike, around the edges, and half of them mirrored."""
        images = torch.roll(images, view.shift, dims=(2, 3))
        if not self.spec.horizontal_flip:
            return images
        return torch.where(self.draw_mirrored(len(images), random), images.flip(3), images)

    def _to_pixels(self, variable: Tensor) -> Tensor:
        """From the scale that Adam works on to pixels in [0, 1]."""
        if self.spec.scale == "normalized":
            normalize = self.objective.normalize
            return variable * normalize.std + normalize.mean
        return variable / PIXEL_SCALE + 0.5

    @torch.no_grad()
    def _clip(self, variable: Tensor) -> None:
        """To what pixels can be."""
        if not self.spec.clip:
            return
        if self.spec.scale == "normalized":
            lowest = self.objective.normalize(torch.zeros_like(variable[:1]))
            highest = self.objective.normalize(torch.ones_like(variable[:1]))
            torch.clamp(variable, lowest, highest, out=variable)
        else:
            variable.clamp_(-PIXEL_SCALE / 2, PIXEL_SCALE / 2)


class DeepInversionInverter(PixelInverter[DeepInversionSynthesis]):
    """The method as it is."""
