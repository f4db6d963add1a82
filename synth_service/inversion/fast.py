"""The paper's ablation: the generator is carried over as the last round adapted it, with no meta step."""

from __future__ import annotations

import torch

from shared.specs import FastSynthesis
from synth_service.inversion.generator_inverter import GeneratorInverter


class FastInverter(GeneratorInverter[FastSynthesis]):
    """Sequential reuse: each round starts where the one before it ended."""

    def learn(self) -> None:
        """Nothing: what counts is where the inner loop ends."""

    @torch.no_grad()
    def commit(self) -> None:
        """The adapted weights, and latents that are learned, become the lasting ones."""
        torch._foreach_copy_(self.lasting, self.adapting)
