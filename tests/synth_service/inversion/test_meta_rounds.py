"""Two consecutive rounds of Algorithm 1 against the authors' implementation, with everything random pinned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.networks.building import build_network
from shared.specs import AugmentationSpec, FastMetaSynthesis, InputSpec, NetworkSpec
from synth_service.inversion.base import Check
from synth_service.inversion.fast_meta import FastMetaInverter
from synth_service.inversion.objective import BestImages
from tests.golden import fill_by_formula, load_golden

CIFAR10 = InputSpec(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CASES = {
    "fomaml_adv_1.1": ("fomaml", 1.1),
    "fomaml_adv_0": ("fomaml", 0.0),
    "reptile_adv_1.1 (outer gradient = 67*(meta - adapted))": ("reptile", 1.1),
}


class PinnedInverter(FastMetaInverter):
    """Latents by formula instead of chance; the kept images stay to be looked at before they become bytes."""

    best: BestImages

    def draw_latents(self, count: int, random: torch.Generator) -> Tensor:
        return torch.sin(0.11 * torch.arange(count * 16, dtype=self.dtype) + self.rounds).reshape(count, 16)

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        self.best = super().optimize(targets, random, check)
        return self.best


def wrn16_1(offset: int) -> nn.Module:
    network = build_network(NetworkSpec(arch="wrn16_1"), num_classes=10, input=CIFAR10).double()
    fill_by_formula(network, offset)
    return network


@pytest.mark.parametrize("case", CASES)
def test_two_rounds_agree_with_the_published_implementation(case: str) -> None:
    meta_gradient, adversarial = CASES[case]
    spec = FastMetaSynthesis.model_validate(
        {
            "meta_gradient": meta_gradient,
            "adversarial": adversarial,
            "batch_size": 8,
            "steps": 3,
            "generator_learning_rate": 3e-3,
            "latent_learning_rate": 0.01,
            "bn": 10,
            "one_hot": 0.5,
            "bn_momentum": 0.9,
            "latent_dim": 16,
            "generator_width": 8,
            "match_targets": False,
            "augmentation": AugmentationSpec(crop_padding=0, horizontal_flip=False),
        }
    )
    inverter = PinnedInverter(spec, wrn16_1(0), num_classes=10, input=CIFAR10, seed=0, device=torch.device("cpu"))
    fill_by_formula(inverter.generator, 3)
    inverter.use_student(wrn16_1(7))

    for expected in load_golden()["meta_rounds"][case]:
        batch = inverter.invert(torch.arange(8))
        assert batch.loss_history["bn"] == close([step["bn"] for step in expected["inner_losses_bn_oh"]])
        assert batch.loss_history["one_hot"] == close([step["oh"] for step in expected["inner_losses_bn_oh"]])
        parameters = dict(inverter.generator.named_parameters())
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        assert norms(gradients) == close(expected["meta_grad_norm"])
        assert norms(parameters) == close(expected["meta_param_norm_after"])
        assert inverter.best.images.mean().item() == close(expected["images_mean"])
        assert inverter.best.images.std().item() == close(expected["images_std"])
        assert inverter.latents.norm().item() == close(expected["z_after_norm"])


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6)


def norms(tensors: dict[str, Any]) -> dict[str, float]:
    return {name: tensor.detach().norm().item() for name, tensor in tensors.items()}
