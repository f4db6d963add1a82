"""SRe2L and CDA against their authors' code: every iteration, with everything random pinned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.networks.image_operations import resized_crops
from shared.specs import InputSpec, RecoverSynthesis
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter
from synth_service.inversion.deepinversion import View
from synth_service.inversion.objective import Evaluation
from synth_service.inversion.recover import RecoverInverter, smallest_crop
from tests.golden import formula_latent, load_golden
from tests.synth_service.inversion.test_deepinversion import CIFAR10, IMAGENET, TinyNetwork, close

GOLDEN = load_golden("golden_methods")["sre2l_cda"]
CASES: dict[str, tuple[InputSpec, dict[str, Any]]] = {
    "sre2l_imagenet_4_iterations": (IMAGENET, {"curriculum": "none"}),
    "sre2l_imagenet_tv_1e-4_l2_1e-5_4_iterations": (
        IMAGENET,
        {
            "curriculum": "none",
            "total_variation": 1e-4,
            "total_variation_norm": "l2",
            "l2": 1e-5,
            "l2_norm": "image",
        },
    ),
    "cda_imagenet_4_iterations": (IMAGENET, {}),
    "sre2l_cifar100_4_iterations": (CIFAR10, {"crop_scale": 1.0, "horizontal_flip": False, "jitter": 4}),
}


class PinnedInverter(RecoverInverter):
    """Start, crops, mirroring and shifts from the golden file."""

    expected: list[dict[str, Any]]
    step = 0

    def draw_start(self, count: int, random: torch.Generator) -> Tensor:
        self.variable = 1.5 * formula_latent((count, *self.input.shape), 0)
        self.norms: list[float] = []
        self.totals: list[float] = []
        return self.variable

    def draw_shifts(self, steps: int, reach: int) -> list[tuple[int, int]]:
        return [(down, right) for down, right in (each["roll"] for each in self.expected)]

    def draw_crops(self, count: int, size: torch.Size, smallest: float, random: torch.Generator) -> Tensor:
        return torch.tensor([self.expected[self.step]["crop_top_left_height_width"]] * count)

    def draw_mirrored(self, count: int, random: torch.Generator) -> Tensor:
        return torch.full((count, 1, 1, 1), self.expected[self.step]["flip"])

    def _look(self, seen: Tensor, targets: Tensor, view: View, random: torch.Generator) -> Evaluation:
        evaluation = super()._look(seen, targets, view, random)
        self.totals.append(evaluation.per_image.detach().mean().item())
        self.step += 1
        return evaluation

    def _clip(self, variable: Tensor) -> None:
        super()._clip(variable)
        self.norms.append(variable.detach().norm().item())


@pytest.mark.parametrize("case", CASES)
def test_every_iteration_agrees_with_the_published_code(case: str) -> None:
    input, changes = CASES[case]
    spec = RecoverSynthesis(batch_size=4, steps=4, **changes)
    setup = Setup(TinyNetwork(0), build_task("classification", 10), input, seed=0, device=torch.device("cpu"))
    inverter = PinnedInverter(spec, setup)
    inverter.expected = GOLDEN[case]
    history = inverter.invert(torch.arange(4)).loss_history
    assert history["one_hot"] == close([each["ce"] for each in GOLDEN[case]])
    assert history["bn"] == close([each["bn_with_first_times_10"] for each in GOLDEN[case]])
    assert inverter.totals == close([each["total"] for each in GOLDEN[case]])
    assert inverter.norms == close([each["norm_after_step_and_clip"] for each in GOLDEN[case]])
    if "total_variation" in changes:
        assert history["total_variation"] == close([each["tv_l2"] for each in GOLDEN[case]])
        assert history["l2"] == close([each["l2"] for each in GOLDEN[case]])


@pytest.mark.parametrize("curriculum", ["cosine", "linear"])
@pytest.mark.parametrize("share", [0.5, 1])
def test_the_curriculum_is_cdas(curriculum: Any, share: float) -> None:
    spec = RecoverSynthesis(curriculum=curriculum, curriculum_share=share)
    table = GOLDEN["cda_min_crop_area_of_4000_iterations"][f"{curriculum}_milestone_{share}"]
    for step, expected in table.items():
        assert smallest_crop(int(step) / 4000, spec) == close(expected)


def test_crops_lie_inside_the_image_and_have_the_area_that_was_asked_for() -> None:
    spec = RecoverSynthesis(batch_size=4, steps=1)
    setup = Setup(TinyNetwork(0), build_task("classification", 10), CIFAR10, seed=0, device=torch.device("cpu"))
    inverter = RecoverInverter(spec, setup)
    crops = inverter.draw_crops(5000, torch.Size((64, 128)), 0.25, torch.Generator().manual_seed(0))
    top, left, height, width = crops.unbind(1)
    assert int(top.min()) == int(left.min()) == 0
    assert int((top + height).max()) == 64
    assert int((left + width).max()) == 128
    area = (height * width) / (64 * 128)
    assert float(area.min()) == pytest.approx(0.25, abs=0.02)
    assert float(area.mean()) == pytest.approx(0.625, abs=0.02)
    aspect = (width / 128) / (height / 64)
    assert 0.72 < float(aspect.min()) < 0.8 < 1.25 < float(aspect.max()) < 1.39


def test_a_crop_is_enlarged_as_torch_does() -> None:
    images = torch.rand(3, 2, 17, 23, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    crops = torch.tensor([[0, 0, 17, 23], [3, 5, 7, 11], [16, 22, 1, 1]])
    enlarged = resized_crops(images, crops)
    for image, (top, left, height, width), found in zip(images, crops.tolist(), enlarged, strict=True):
        crop = image[None, :, top : top + height, left : left + width]
        torch.testing.assert_close(found[None], F.interpolate(crop, (17, 23), mode="bilinear", align_corners=False))


def test_with_a_low_resolution_stage_the_last_images_at_full_size_are_kept() -> None:
    spec = RecoverSynthesis(batch_size=4, steps=2, pooled_steps=2)
    setup = Setup(TinyNetwork(0).float(), build_task("classification", 10), IMAGENET, 0, torch.device("cpu"))
    batch = build_inverter(spec, setup).invert(torch.arange(4))
    assert batch.images.shape == (4, 3, 32, 32)
    assert set(batch.losses) == {"one_hot", "bn"}
    assert len(batch.loss_history["bn"]) == 4
