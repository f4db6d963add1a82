"""A smoke test of the ImageNet benchmark, with a teacher that is small and knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import imagenet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 8, stride=8, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, imagenet.CLASSES),
        )
    return network.eval()


@pytest.mark.parametrize("label", imagenet.METHODS)
def test_every_method_makes_images_for_classes_of_its_own(
    teacher: nn.Module, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if label.startswith("fast"):
        smaller = {"steps": 1, "generator_width": 2, "latent_dim": 2}
        monkeypatch.setitem(imagenet.METHODS, label, imagenet.METHODS[label] | smaller)
    settings = {"label": label, "seed": 0, "batch": 2, "steps": 1}
    images, targets, cell = imagenet.invert(teacher, settings, CPU)
    assert images.shape == (2, 3, 224, 224)
    assert sorted(targets) == sorted(torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:2].tolist())
    assert cell["images"] == 2
    assert 0 <= cell["agreement"] <= 1
    assert 0 < cell["confidence_in_target"] < 0.1
    assert cell["losses"]["bn"] > 0
    assert all(entropy > 0 for entropy in cell["cross_entropy_by_round"])


def test_the_table_has_a_row_for_every_method() -> None:
    told = {"images": 2, "int8_top1": 0.5}
    text = imagenet.describe({"teacher": {"top1_224": 0.9}, "methods": {"noise": told, "real images": told}})
    assert "top1_224 0.900" in text
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["noise", "real"]


def test_confidence_is_that_in_the_class_that_was_asked_for() -> None:
    class Sure(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 20 * nn.functional.one_hot((images[:, 0, 0, 0] > 0).long(), imagenet.CLASSES).float()

    images = np.zeros((2, 3, 224, 224), np.uint8)
    images[1] = 255
    found = imagenet.judged(Sure(), images, np.array([0, 0]), CPU)
    assert found == {"agreement": 0.5, "confidence_in_target": pytest.approx(0.5, abs=1e-3)}
