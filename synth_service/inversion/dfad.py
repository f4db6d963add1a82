"""DFAD (Fang et al., "Data-Free Adversarial Distillation", 2019): generator and student in turn, no inversion.

The generator drives its images to where student and teacher differ, the student learns to agree there. In this
service the student is the distiller's; here every round hands out a fresh batch of the generator's, and every few
rounds (``batches_per_generator_step``) the generator makes one step against the newest student. With lockstep pacing,
one distillation step for each batch and a pool of one batch that is the published algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shared.specs import DFADSynthesis
from synth_service.inversion.base import Check, Inverter
from synth_service.inversion.generators import build_generator
from synth_service.inversion.objective import BestImages, gradients_of
from synth_service.inversion.terms import Balance, BatchNormStatistics, Discrepancy, LossTerm, OneHot, Setup, weighted


class DFADInverter(Inverter[DFADSynthesis]):
    """A generator with one lasting optimizer; what a round draws is what it hands out."""

    def __init__(self, spec: DFADSynthesis, setup: Setup) -> None:
        super().__init__(spec, setup)
        self.generator = build_generator(
            spec.generator,
            spec.latent_dim,
            spec.generator_width,
            setup.input.shape,
            random=self.random("generator"),
            dtype=self.dtype,
        )
        self.parameters: list[Tensor] = [p for p in self.generator.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=spec.generator_learning_rate, fused=True)
        self._learned = False

    def terms(self) -> Sequence[LossTerm]:
        """The published one, and the others where the spec gives them a weight."""
        spec, task = self.spec, self.setup.task
        return weighted(
            Discrepancy(spec.adversarial),
            OneHot(spec.one_hot, task),
            spec.bn and BatchNormStatistics(spec.bn, self.setup.teacher),
            Balance(spec.balance),
        )

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """See the base class."""
        check()
        best = BestImages(self.setup.task)
        with torch.no_grad():
            images = self.draw(len(targets), random)
            best.add(images, self.objective(images, targets))
        self._learned = self.objective.opponent is not None and (
            (self.rounds + 1) % self.spec.batches_per_generator_step == 0
        )
        if self._learned:
            check()
            with _as_in_training(self.objective.student):
                images = self.draw(len(targets), random)
                self.objective.backward(self.objective(images, targets), self.parameters)
        return best

    @torch.no_grad()
    def commit(self) -> None:
        """The generator's step, where one is due."""
        if self._learned:
            assert gradients_of(self.parameters)
            self.optimizer.step()

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """Images (count, C, H, W) in [0, 1] of fresh latents."""
        # Running statistics mean nothing in a generator that always normalizes with the batch at hand: they stay.
        buffers = {name: buffer.clone() for name, buffer in self.generator.named_buffers()}
        with self.objective.precision.autocast():
            images: Tensor = functional_call(self.generator, buffers, (self.draw_latents(count, random),))
        return images

    def draw_latents(self, count: int, random: torch.Generator) -> Tensor:
        """Standard normal latents (count, *latent_shape)."""
        shape = (count, *self.generator.latent_shape)
        return torch.randn(shape, generator=random, dtype=self.dtype, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """The base class's state, the generator and its optimizer."""
        return super().state_dict() | {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _as_in_training(student: nn.Module | None) -> Iterator[None]:
    """The student normalizes with the batch at hand, as published, and keeps its statistics all the same."""
    assert student is not None
    buffers = [(buffer, buffer.clone()) for buffer in student.buffers()]
    student.train()
    try:
        yield
    finally:
        student.eval()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
