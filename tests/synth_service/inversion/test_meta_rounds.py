"""Two consecutive rounds of Algorithm 1 against the authors' implementation, with everything random pinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.networks.building import build_network
from shared.specs import AugmentationSpec, FastMetaSynthesis, InputSpec, NetworkSpec
from shared.tasks.base import build_task
from synth_service.inversion import Setup
from synth_service.inversion.base import Check
from synth_service.inversion.fast_meta import FastMetaInverter
from synth_service.inversion.objective import BestImages
from tests.golden import blend_by_formula, fill_by_formula, formula_latent, load_golden

TASK = build_task("classification", 10)
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
        return formula_latent((count, 16), self.rounds)

    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        self.best = super().optimize(targets, random, check)
        return self.best


def wrn16_1(offset: int) -> nn.Module:
    network = build_network(NetworkSpec(arch="wrn16_1"), num_classes=10, input=CIFAR10).double()
    fill_by_formula(network, offset)
    return network


def pinned(meta_gradient: str, adversarial: float, student: nn.Module) -> PinnedInverter:
    spec = FastMetaSynthesis.model_validate(
        {
            "meta_gradient": meta_gradient,
            "adversarial": adversarial,
            "batch_size": 8,
            "steps": 3,
            "generator_learning_rate": 3e-3,
            "latent_learning_rate": 0.01,
            "bn": 10,
            "bn_distance": "norm",
            "one_hot": 0.5,
            "bn_momentum": 0.9,
            "latent_dim": 16,
            "generator_width": 8,
            "match_targets": False,
            "augmentation": AugmentationSpec(crop_padding=0, horizontal_flip=False),
        }
    )
    inverter = PinnedInverter(spec, Setup(wrn16_1(0), TASK, CIFAR10, seed=0, device=torch.device("cpu")))
    fill_by_formula(inverter.generator, 3)
    inverter.use_student(student)
    return inverter


@pytest.mark.parametrize("case", CASES)
def test_two_rounds_agree_with_the_published_implementation(case: str) -> None:
    inverter = pinned(*CASES[case], wrn16_1(7))
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


@pytest.mark.parametrize("case", ["fomaml_adv_1.1", "reptile_adv_1.1"])
def test_two_rounds_with_an_active_adversary_agree_with_the_published_implementation(case: str) -> None:
    """In the cases above teacher and student never agree, so that the adversarial term is always 0."""
    student = wrn16_1(0)
    blend_by_formula(student, 0.23)
    inverter = pinned(case.partition("_")[0], 1.1, student)
    for expected in load_golden("golden_methods")["cifar_meta_rounds_active_adversary"][case]:
        batch = inverter.invert(torch.arange(8))
        for term, name in (("bn", "bn"), ("one_hot", "oh"), ("adversarial", "adv")):
            assert batch.loss_history[term] == close([step[name] for step in expected["inner"]])
        parameters = [p for p in inverter.generator.parameters() if p.requires_grad]
        assert joint_norm([p.grad for p in parameters]) == close(expected["outer_grad_norm"])
        assert joint_norm(parameters) == close(expected["meta_param_norm_after"])
        kept = inverter.best.images
        assert kept.mean().item() == close(expected["kept_images"]["mean"])
        assert kept.std().item() == close(expected["kept_images"]["std"])
        assert kept[0, 0, 0, :6].tolist() == close(expected["kept_images"]["first_row"])


def joint_norm(tensors: Sequence[Tensor | None]) -> float:
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors if tensor is not None])
    return float(flat.norm())


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6)


def norms(tensors: dict[str, Any]) -> dict[str, float]:
    return {name: tensor.detach().norm().item() for name, tensor in tensors.items()}
