"""Fast DFKD: the generator is meta-learned, so that a few steps from its weights invert a whole batch.

The outer gradient is first-order, from the inner loop's own gradients (FOMAML, their sum over the steps)
or from where the loop ended (Reptile). One outer Adam step per round follows it. Its step size is, unless the spec says
otherwise, the inner one times the number of steps: as far as the inner loop itself could have gone.

In the authors' ImageNet form the outer steps are small and the latents, too, are learned. Images at one place of a
batch then resemble those of the round before, so the latents are drawn anew after some rounds (``reset_every``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shared.specs import FastMetaSynthesis
from synth_service.inversion.base import Check
from synth_service.inversion.generator_inverter import ADAM_BETAS, GeneratorInverter
from synth_service.inversion.objective import BestImages, gradients_of
from synth_service.inversion.terms import Setup

REPTILE_SCALES = {"standard": 67.0, "deep": 1.0}
"""Factor of (lasting - adapted), by generator. Adam all but ignores it; it is kept to meet published numbers."""


class FastMetaInverter(GeneratorInverter[FastMetaSynthesis]):
    """Algorithm 1 with an outer optimizer over generator and learned latents."""

    def __init__(self, spec: FastMetaSynthesis, setup: Setup) -> None:
        super().__init__(spec, setup)
        self.reptile = spec.meta_gradient == "reptile"
        parameters = self.lasting
        latents = [] if self.learned_latents is None else [parameters.pop()]
        outer, outer_latent = spec.outer_generator_learning_rate, spec.outer_latent_learning_rate
        self.outer = torch.optim.Adam(
            [
                {"params": parameters, "lr": outer or spec.generator_learning_rate * spec.steps},
                {"params": latents, "lr": outer_latent or spec.latent_learning_rate * spec.steps},
            ],
            betas=ADAM_BETAS,
            fused=True,
        )
        for parameter in self.lasting:
            parameter.grad = torch.zeros_like(parameter)

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """See the base class. The outer gradient starts at zero, whatever an interrupted round left."""
        if self.spec.reset_every is not None and (self.rounds + 1) % self.spec.reset_every == 0:
            self._reset()
        torch._foreach_zero_(gradients_of(self.lasting))
        return super().optimize(targets, random, check)

    @torch.no_grad()
    def _reset(self) -> None:
        """Fresh latents, drawn so that a repeated round draws the same, and a fresh outer Adam."""
        if self.learned_latents is not None:
            random = self.random(f"latents of round {self.rounds}")
            self.learned_latents.copy_(self.draw_latents(self.spec.batch_size, random))
        self.outer.state.clear()

    def learn(self) -> None:
        """FOMAML adds up the inner gradients; those of latents drawn for this round alone teach nothing."""
        if not self.reptile:
            torch._foreach_add_(gradients_of(self.lasting), gradients_of(self.adapting))

    @torch.no_grad()
    def commit(self) -> None:
        """One outer step."""
        if self.reptile:
            outer = gradients_of(self.lasting)
            torch._foreach_add_(outer, self.lasting)
            torch._foreach_sub_(outer, self.adapting)
            torch._foreach_mul_(outer, REPTILE_SCALES.get(self.spec.generator, 67.0))
        self.outer.step()

    def state_dict(self) -> dict[str, Any]:
        """The base class's state and the outer optimiser's."""
        return super().state_dict() | {"outer": self.outer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.outer.load_state_dict(state["outer"])
