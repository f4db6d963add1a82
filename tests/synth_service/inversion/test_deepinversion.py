"""DeepInversion against its authors' ImageNet and CIFAR code: every iteration, with everything random pinned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.specs import DeepInversionSynthesis, InputSpec
from shared.tasks.base import build_task
from synth_service.inversion import Setup
from synth_service.inversion.deepinversion import DeepInversionInverter, View
from synth_service.inversion.objective import Evaluation
from tests.golden import fill_by_formula, formula_latent, load_golden

GOLDEN = load_golden("golden_methods")["deepinversion"]
IMAGENET = InputSpec(height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR10 = InputSpec(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

IMAGENET_FORM: dict[str, Any] = {
    "batch_size": 4,
    "pooled_steps": 3,
    "steps": 3,
    "learning_rate": 0.25,
    "warmup_steps": 2,
    "learning_rate_schedule": "cosine",
    "bn": 0.01,
    "bn_first_layer": 10,
    "one_hot": 1,
    "total_variation": 1e-4,
    "total_variation_norm": "l2",
    "l2": 1e-5,
    "l2_norm": "image",
    "scale": "normalized",
}
CIFAR_FORM: dict[str, Any] = {
    "batch_size": 8,
    "steps": 3,
    "learning_rate": 0.05,
    "adam_betas": (0.9, 0.999),
    "bn": 10,
    "one_hot": 1,
    "total_variation": 2.5e-5,
    "total_variation_norm": "l2",
    "l2": 1e-3,
    "l2_norm": "batch",
    "scale": "normalized",
    "clip": False,
    "horizontal_flip": False,
}


class TinyNetwork(nn.Module):
    """The golden file's tiny net."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
        self.double()
        fill_by_formula(self, offset)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.f(images)
        return logits


class PinnedInverter(DeepInversionInverter):
    """Start, shifts and mirroring from the golden file; keeps what it saw on the way."""

    expected: list[dict[str, Any]]

    def start(self, expected: list[dict[str, Any]]) -> PinnedInverter:
        self.expected = expected
        self.step = 0
        self.norms: list[float] = []
        self.rates: list[float] = []
        self.totals: list[float] = []
        return self

    def draw_start(self, count: int, random: torch.Generator) -> Tensor:
        self.variable = formula_latent((count, *self.input.shape), 0)
        return self.variable

    def draw_shifts(self, steps: int, reach: int) -> list[tuple[int, int]]:
        return [(down, right) for down, right in (each["roll"] for each in self.expected[self.step :][:steps])]

    def draw_mirrored(self, count: int, random: torch.Generator) -> Tensor:
        return torch.full((count, 1, 1, 1), self.expected[self.step]["flip"])

    def _look(self, seen: Tensor, targets: Tensor, view: View, random: torch.Generator) -> Evaluation:
        self.norms.append(self.variable.detach().norm().item())
        evaluation = super()._look(seen, targets, view, random)
        self.totals.append(evaluation.per_image.detach().mean().item())
        self.step += 1
        return evaluation

    def _learning_rate(self, step: int, steps: int) -> float:
        self.rates.append(super()._learning_rate(step, steps))
        return self.rates[-1]


def inverter_of(form: dict[str, Any], input: InputSpec, golden: str, adversarial: float) -> PinnedInverter:
    spec = DeepInversionSynthesis(**form, adversarial=adversarial)
    setup = Setup(TinyNetwork(0), build_task("classification", 10), input, seed=0, device=torch.device("cpu"))
    inverter = PinnedInverter(spec, setup).start(GOLDEN[golden])
    inverter.use_student(TinyNetwork(7))
    return inverter


@pytest.mark.parametrize(
    ("golden", "adversarial"), [("imagenet_form_setting_0", 0), ("imagenet_form_setting_0_adi_0.2", 0.2)]
)
def test_the_imagenet_form_agrees_with_the_published_code(golden: str, adversarial: float) -> None:
    inverter = inverter_of(IMAGENET_FORM, IMAGENET, golden, adversarial)
    history = inverter.invert(torch.tensor([1, 3, 5, 7])).loss_history
    names = {"ce": "one_hot", "r_feature_with_first_times_10": "bn", "tv_l2": "total_variation", "l2": "l2"}
    if adversarial:
        names["adi"] = "adversarial"
    for name, term in names.items():
        assert history[term] == close([each[name] for each in inverter.expected])
    assert inverter.totals == close([each["total"] for each in inverter.expected])
    assert inverter.norms == close([each["inputs_norm_before"] for each in inverter.expected])
    assert inverter.rates == close([each["lr"] for each in inverter.expected])


@pytest.mark.parametrize(("golden", "adversarial"), [("cifar_form", 0), ("cifar_form_adi_10", 10)])
def test_the_cifar_form_agrees_with_the_published_code(golden: str, adversarial: float) -> None:
    inverter = inverter_of(CIFAR_FORM, CIFAR10, golden, adversarial)
    history = inverter.invert(torch.arange(8)).loss_history
    names = {"ce": "one_hot", "r_feature": "bn", "tv_l2": "total_variation", "l2": "l2"}
    if adversarial:
        names["adi"] = "adversarial"
    for name, term in names.items():
        assert history[term] == close([each[name] for each in inverter.expected])
    assert inverter.totals == close([each["total"] for each in inverter.expected])
    assert inverter.norms == close([each["inputs_norm_before"] for each in inverter.expected])
    if not adversarial:
        assert inverter.variable.norm().item() == close(GOLDEN["cifar_form_end"]["norm_after_3_steps"])


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6)
