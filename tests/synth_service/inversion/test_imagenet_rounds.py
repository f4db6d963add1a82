"""Three rounds of the authors' ImageNet form, whose latents are learned, against the corrected published code."""

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
from synth_service.inversion.fast_meta import FastMetaInverter
from tests.golden import blend_by_formula, fill_by_formula, formula_latent, load_golden

IMAGENET = InputSpec(height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CASES: dict[str, dict[str, Any]] = {
    "reptile_adv_0.1_corrected": {"meta_gradient": "reptile", "adversarial": 0.1},
    "reptile_adv_1.0_corrected": {"meta_gradient": "reptile", "adversarial": 1.0},
    "reptile_adv_0.1_corrected_reinit_2": {"meta_gradient": "reptile", "adversarial": 0.1, "reset_every": 2},
    "fomaml_sum_of_steps_adv_0.1_corrected": {"meta_gradient": "fomaml", "adversarial": 0.1},
}


class PinnedInverter(FastMetaInverter):
    """Latents by formula, in the order in which they are drawn."""

    draws = 0

    def draw_latents(self, count: int, random: torch.Generator) -> Tensor:
        self.draws += 1
        return formula_latent((count, 16, 2, 2), self.draws - 1)


def wrn16_1() -> nn.Module:
    network = build_network(NetworkSpec(arch="wrn16_1"), num_classes=10, input=IMAGENET).double()
    fill_by_formula(network, 0)
    return network


def pinned(**changes: Any) -> PinnedInverter:
    spec = FastMetaSynthesis.model_validate(
        {
            "generator": "deep",
            "batch_size": 8,
            "steps": 3,
            "generator_learning_rate": 2e-4,
            "latent_learning_rate": 0.01,
            "outer_generator_learning_rate": 1e-4,
            "outer_latent_learning_rate": 5e-3,
            "bn": 0.1,
            "bn_distance": "norm",
            "one_hot": 0.1,
            "bn_momentum": 0.9,
            "latent_dim": 16,
            "generator_width": 8,
            "match_targets": False,
            "augmentation": AugmentationSpec(crop_padding=0, horizontal_flip=False),
            **changes,
        }
    )
    setup = Setup(wrn16_1(), build_task("classification", 10), IMAGENET, seed=0, device=torch.device("cpu"))
    inverter = PinnedInverter(spec, setup)
    for generator in (inverter.generator, inverter.adapted):
        fill_by_formula(generator, 3)
    student = wrn16_1()
    blend_by_formula(student, 0.3)
    inverter.use_student(student)
    return inverter


@pytest.mark.parametrize("case", CASES)
def test_three_rounds_agree_with_the_published_implementation(case: str) -> None:
    inverter = pinned(**CASES[case])
    for expected in load_golden("golden_methods")["imagenet_meta_rounds"][case]:
        batch = inverter.invert(torch.arange(8))
        for term, name in (("bn", "bn"), ("one_hot", "oh"), ("adversarial", "adv")):
            assert batch.loss_history[term] == close([step[name] for step in expected["inner"]])
        *weights, latents = inverter.lasting
        assert joint_norm([weight.grad for weight in weights]) == close(expected["outer_grad_norm_generator"])
        assert joint_norm([latents.grad]) == close(expected["outer_grad_norm_z"])
        # Published norms are of all parameters, with those of the layer that no image depends on.
        assert joint_norm([*inverter.adapted.parameters()]) == close(expected["adapted_param_norm_generator"])
        assert joint_norm([inverter.latents]) == close(expected["adapted_norm_z"])
        assert joint_norm([*inverter.generator.parameters()]) == close(expected["meta_param_norm_generator"])
        assert joint_norm([latents]) == close(expected["meta_norm_z"])
        assert latents.flatten()[:4].tolist() == close(expected["z_after_outer_step_first4"])


def test_a_reset_round_that_is_interrupted_and_repeated_gives_the_same_bytes() -> None:
    class Interrupted(Exception):
        pass

    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # in the middle of the second round, before which latents are drawn anew
            raise Interrupted

    def fresh() -> FastMetaInverter:
        spec = pinned(reset_every=2).spec
        teacher = wrn16_1().float()
        setup = Setup(teacher, build_task("classification", 10), IMAGENET, seed=0, device=torch.device("cpu"))
        return FastMetaInverter(spec, setup)

    alone, disturbed = fresh(), fresh()
    expected = [alone.invert(torch.arange(8)).images for _ in range(3)]
    first = disturbed.invert(torch.arange(8), interrupt).images
    with pytest.raises(Interrupted):
        disturbed.invert(torch.arange(8), interrupt)
    successor = fresh()
    successor.load_state_dict(disturbed.state_dict())
    for inverter in (disturbed, successor):
        rest = [inverter.invert(torch.arange(8)).images for _ in range(2)]
        assert all(torch.equal(one, other) for one, other in zip([first, *rest], expected, strict=True))


def test_latents_that_are_not_learned_are_drawn_anew_for_every_batch() -> None:
    spec = pinned(learn_latents=False).spec
    setup = Setup(wrn16_1().float(), build_task("classification", 10), IMAGENET, seed=0, device=torch.device("cpu"))
    inverter = FastMetaInverter(spec, setup)
    inverter.invert(torch.arange(8))
    before = inverter.latents
    inverter.invert(torch.arange(8))
    pair = torch.stack([before.detach().flatten(), inverter.latents.detach().flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.2


def joint_norm(tensors: Sequence[Tensor | None]) -> float:
    return float(torch.cat([tensor.detach().flatten() for tensor in tensors if tensor is not None]).norm())


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6)
