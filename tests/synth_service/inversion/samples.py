"""A small teacher and a small synthesis that the tests of inversion share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared.specs import (
    AugmentationSpec,
    DeepInversionSynthesis,
    FastMetaSynthesis,
    FastSynthesis,
    InputSpec,
    RecoverSynthesis,
)
from shared.tasks.base import build_task
from synth_service.inversion import Inverter, Setup, build_inverter
from tests.golden import fill_by_formula

CPU = torch.device("cpu")
GRAY = InputSpec(channels=1, height=16, width=16, mean=(0.3,), std=(0.35,))
AnySynthesis = FastMetaSynthesis | FastSynthesis | DeepInversionSynthesis | RecoverSynthesis

FAST_META = FastMetaSynthesis(
    batch_size=8,
    steps=3,
    latent_dim=6,
    generator_width=4,
    reset_first_layer_at_batch=3,
    match_targets=False,
    adversarial=1.0,
    bn_distance="norm",
    bn_momentum=0.9,
    augmentation=AugmentationSpec(crop_padding=4, padding="black"),
)
FAST = FastSynthesis(**FAST_META.model_dump(include={*FastSynthesis.model_fields} - {"method"}))
REPTILE = FAST_META.model_copy(update={"meta_gradient": "reptile"})
DEEP = FAST_META.model_copy(update={"generator": "deep"})
DEEP_INVERSION = DeepInversionSynthesis(batch_size=8, steps=4, adversarial=1.0)
METHODS: dict[str, AnySynthesis] = {
    "fomaml": FAST_META,
    "reptile": REPTILE,
    "deep fomaml": DEEP,
    "deep reptile": DEEP.model_copy(update={"meta_gradient": "reptile"}),
    "sequential": FAST,
    "deep sequential": FAST.model_copy(update={"generator": "deep"}),
    "deepinversion": DEEP_INVERSION,
    "recover": RecoverSynthesis(batch_size=8, steps=4, adversarial=1.0),
}


class SmallNetwork(nn.Module):
    """Two convolutions, two BatchNorm layers, dropout and a classifier of three classes."""

    def __init__(self, channels: int = 1, classes: int = 3, batch_norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            batch_norm(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            batch_norm(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(8, classes)
        fill_by_formula(self)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def inverter_of(
    spec: AnySynthesis, teacher: nn.Module | None = None, *, input: InputSpec = GRAY, seed: int = 0
) -> Inverter[Any]:
    """An inverter on the CPU of a small teacher of three classes, with a student to compete with."""
    task = build_task("classification", 3)
    inverter = build_inverter(spec, Setup(teacher or SmallNetwork(input.channels), task, input, seed=seed, device=CPU))
    student = SmallNetwork(input.channels)
    fill_by_formula(student, offset=7)
    inverter.use_student(student)
    return inverter


def targets(count: int = 8) -> Tensor:
    return torch.arange(count) % 3
