"""What the generator-based methods share: the inner loop of Algorithm 1 (Fang et al., AAAI 2022).

A copy of the generator, and the latents of one batch, are adapted for a few Adam steps. What the lasting
generator learns from that is the method's own business: ``learn`` sees each step's gradients, ``commit``
comes after the last one.

The standard generator's latents are drawn anew for each round. The deep generator's spatial latents are, unless the
spec says otherwise, learned like its weights (the paper's ImageNet form): they are part of the lasting state, and a
round adapts a copy of them.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.batch_norm import layers_with_statistics
from shared.networks.image_operations import BatchAugmentation
from shared.specs import GeneratorSynthesis
from synth_service.inversion.attention import AttentionEntropy
from synth_service.inversion.base import Check, Inverter
from synth_service.inversion.generators import build_generator
from synth_service.inversion.objective import BestImages
from synth_service.inversion.terms import Adversarial, Balance, BatchNormStatistics, LossTerm, OneHot, Setup, weighted

ADAM_BETAS = (0.5, 0.999)
"""Of the inner and the outer optimizer, as published."""


G = TypeVar("G", bound=GeneratorSynthesis)


class GeneratorInverter(Inverter[G]):
    """Inverts through a generator that is carried from round to round.

    Raises:
        UserError: ``teacher_has_no_batchnorm`` or ``augmentation_does_not_fit``.
    """

    def __init__(self, spec: G, setup: Setup) -> None:
        super().__init__(spec, setup)
        input = setup.input
        try:
            self.augment = BatchAugmentation(spec.augmentation, (input.height, input.width))
        except ValueError as error:
            raise UserError("augmentation_does_not_fit", f"synthesis.{error}") from error
        self.generator = build_generator(
            spec.generator,
            spec.latent_dim,
            spec.generator_width,
            input.shape,
            random=self.random("generator"),
            dtype=self.dtype,
        )
        self.adapted = copy.deepcopy(self.generator)
        """The generator of the running round; its weights are overwritten when one starts."""
        self.learned_latents: Tensor | None = None
        """(batch_size, *latent_shape) for the deep generator: where every round's latents start."""
        if spec.generator == "deep" and spec.learn_latents:
            self.learned_latents = nn.Parameter(self.draw_latents(spec.batch_size, self.random("latents")))
        self.latents = torch.empty(0)
        """The latents of the running or last round, as adapted."""

    def terms(self) -> Sequence[LossTerm]:
        """The paper's losses, and the balance of classes where the spec gives it a weight."""
        spec, task = self.spec, self.setup.task
        return weighted(
            OneHot(spec.one_hot, task),
            self._statistics(),
            Adversarial(spec.adversarial, task),
            Balance(spec.balance),
            spec.attention and AttentionEntropy(spec.attention, self.setup.teacher),
        )

    def _statistics(self) -> LossTerm | float:
        spec, teacher = self.spec, self.setup.teacher
        balanced = spec.bn_distance == "balanced"
        if not spec.bn or (balanced and not layers_with_statistics(teacher)):
            return 0.0
        return BatchNormStatistics(spec.bn, teacher, momentum=spec.bn_momentum, balanced=balanced)

    @property
    def lasting(self) -> list[Tensor]:
        """What is carried from round to round: generator parameters and, if there are any, learned latents."""
        return _parameters(self.generator) + ([] if self.learned_latents is None else [self.learned_latents])

    @property
    def adapting(self) -> list[Tensor]:
        """The running round's counterparts of ``lasting``, in the same order."""
        return _parameters(self.adapted) + ([] if self.learned_latents is None else [self.latents])

    def draw_latents(self, count: int, random: torch.Generator) -> Tensor:
        """Standard normal latents (count, *latent_shape)."""
        shape = (count, *self.generator.latent_shape)
        return torch.randn(shape, generator=random, dtype=self.dtype, device=self.device)

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """Algorithm 1's inner loop; see the base class."""
        if self.rounds + 1 == self.spec.reset_first_layer_at_batch:
            # Drawn from a generator of its own, so that a repeated round draws the same.
            self.generator.reset_first_layer(self.random("first layer"))
        weights, latents = self._start_round(len(targets), random)
        adam = torch.optim.Adam(
            [
                {"params": weights, "lr": self.spec.generator_learning_rate},
                {"params": [latents], "lr": self.spec.latent_learning_rate},
            ],
            betas=ADAM_BETAS,
            fused=True,
        )
        best = BestImages(self.setup.task)
        for step in range(self.spec.steps):
            check()
            with self.objective.precision.autocast():
                images = self.adapted(latents[: len(targets)])
            deal = self.spec.match_targets and step == 0
            evaluation = self.objective(self.augment(images, random), targets, images=images, deal=deal)
            targets = evaluation.targets
            best.add(images, evaluation)
            self.objective.backward(evaluation, [*weights, latents])
            self.learn()
            adam.step()
        return best

    @torch.no_grad()
    def _start_round(self, count: int, random: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Weights and latents that the round may change. The latents are a copy that shares nothing."""
        weights = _parameters(self.adapted)
        torch._foreach_copy_(weights, _parameters(self.generator))
        start = self.draw_latents(count, random) if self.learned_latents is None else self.learned_latents
        self.latents = start.detach().clone().requires_grad_()
        return weights, self.latents

    def compile_networks(self) -> None:
        """Also the generator; see the base class."""
        super().compile_networks()
        self.adapted.compile()

    @abstractmethod
    def learn(self) -> None:
        """Note one inner step's gradients, those of ``adapting``."""

    def state_dict(self) -> dict[str, Any]:
        """The base class's state, the generator and the learned latents."""
        latents = None if self.learned_latents is None else self.learned_latents.detach()
        return super().state_dict() | {"generator": self.generator.state_dict(), "latents": latents}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.generator.load_state_dict(state["generator"])
        if self.learned_latents is not None:
            self.learned_latents.copy_(state["latents"])


def _parameters(generator: nn.Module) -> list[Tensor]:
    return [parameter for parameter in generator.parameters() if parameter.requires_grad]
