"""DeepInversion (Yin et al., CVPR 2020): every batch's pixels are optimized from noise, over thousands of steps.

It is the baseline that Fast DFKD is measured against, so it is given what its authors give it: jitter and
flip, image priors, the Jensen-Shannon competition with the student, and clipping to valid pixels.

What Adam moves is ``4·(pixels - 0.5)``: the scale on which natural images have about unit variance, so that
the published step size and priors mean the same whatever normalization the teacher was trained with.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from shared.specs import DeepInversionSynthesis, InputSpec
from synth_service.inversion.base import Check, Inverter
from synth_service.inversion.losses import jensen_shannon, total_variation
from synth_service.inversion.objective import BestImages

PIXEL_SCALE = 4.0
ADAM_BETAS = (0.5, 0.9)
"""As in the authors' ImageNet runs."""


def competition(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 - Jensen-Shannon divergence per image (N,): low where the student still disagrees."""
    return 1 - jensen_shannon(student_logits, teacher_logits).clamp(0, 1)


class DeepInversionInverter(Inverter):
    """Optimizes pixels; keeps nothing from round to round but the round number."""

    def __init__(
        self,
        spec: DeepInversionSynthesis,
        teacher: nn.Module,
        *,
        num_classes: int,
        input: InputSpec,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            spec,
            teacher,
            num_classes=num_classes,
            input=input,
            seed=seed,
            device=device,
            disagreement=competition,
            bn_momentum=0.0,
        )
        self.settings = spec

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """See the base class."""
        shape = (len(targets), *self.input.shape)
        noise = torch.randn(shape, generator=random, dtype=self.dtype, device=self.device)
        scaled = noise.contiguous(memory_format=torch.channels_last).clamp_(-PIXEL_SCALE / 2, PIXEL_SCALE / 2)
        scaled.requires_grad_()
        adam = torch.optim.Adam([scaled], lr=self.settings.learning_rate, betas=ADAM_BETAS, fused=True)
        shifts = self._draw_shifts()
        best = BestImages()
        for step in range(self.settings.steps):
            check()
            images = scaled / PIXEL_SCALE + 0.5
            evaluation = self.objective(self._jitter(images, shifts[step], random), targets)
            variation, norm = total_variation(scaled), scaled.square().sum((1, 2, 3))
            evaluation = dataclasses.replace(
                evaluation,
                per_image=evaluation.per_image + self.settings.total_variation * variation + self.settings.l2 * norm,
                terms=evaluation.terms | {"total_variation": variation.detach().mean(), "l2": norm.detach().mean()},
            )
            best.add(images, evaluation)
            self.objective.backward(evaluation, [scaled])
            adam.step()
            with torch.no_grad():
                scaled.clamp_(-PIXEL_SCALE / 2, PIXEL_SCALE / 2)
        return best

    def commit(self) -> None:
        """Nothing lasts."""

    def _draw_shifts(self) -> list[tuple[int, int]]:
        """(down, right) of every step. Drawn on the host, where they are needed, so that no step waits."""
        reach = self.settings.jitter
        cpu = torch.Generator().manual_seed(self.random(f"shifts of round {self.rounds}").initial_seed())
        drawn = torch.randint(-reach, reach + 1, (self.settings.steps, 2), generator=cpu)
        return [(down, right) for down, right in drawn.tolist()]

    def _jitter(self, images: Tensor, shift: tuple[int, int], random: torch.Generator) -> Tensor:
        """Shift all images alike, around the edges; mirror each with probability one half."""
        images = torch.roll(images, shift, dims=(2, 3))
        if not self.settings.horizontal_flip:
            return images
        mirrored = torch.rand(len(images), 1, 1, 1, generator=random, device=self.device) < 0.5
        return torch.where(mirrored, images.flip(3), images)
