from typing import Any

import pytest
from pydantic import ValidationError

from shared.specs import JobSpec
from shared.specs.presets import PRESETS, fill_from_preset

TEACHER = {"arch": "resnet20", "num_classes": 10, "checkpoint": "teacher.safetensors"}


def synthesis(written: dict[str, Any] | None = None, arch: str = "resnet20") -> Any:
    spec = {"teacher": TEACHER | {"arch": arch}, "distillation": None}
    return JobSpec.model_validate(spec | ({} if written is None else {"synthesis": written})).synthesis


@pytest.mark.parametrize(
    ("preset", "steps", "generator", "latent"),
    [("fast-2", 2, 5e-3, 0.015), ("fast-5", 5, 3e-3, 0.01), ("fast-10", 10, 2e-3, 0.01)],
)
def test_presets_have_the_settings_of_the_paper(preset: str, steps: int, generator: float, latent: float) -> None:
    spec = synthesis({"preset": f"paper-{preset}"})
    assert (spec.bn_distance, spec.match_targets) == ("norm", False)
    assert (spec.augmentation.crop_padding, spec.augmentation.padding) == (4, "black")
    assert (spec.method, spec.meta_gradient) == ("fast-meta", "fomaml")
    assert (spec.steps, spec.generator_learning_rate, spec.latent_learning_rate) == (steps, generator, latent)
    assert (spec.batch_size, spec.latent_dim, spec.generator_width) == (256, 256, 64)
    assert (spec.bn, spec.bn_momentum) == (10.0, 0.9)


@pytest.mark.parametrize(
    ("arch", "adversarial", "one_hot"),
    [("resnet34", 1.33, 0.5), ("vgg11", 1.0, 0.5), ("wrn40_2", 1.1, 0.4), ("resnet20", 1.1, 0.4)],
)
def test_weights_follow_the_teacher(arch: str, adversarial: float, one_hot: float) -> None:
    spec = synthesis({"preset": "paper-fast-10"}, arch)
    assert (spec.adversarial, spec.one_hot) == (adversarial, one_hot)


def test_our_own_presets_assume_nothing_of_the_teacher() -> None:
    ours, others = (synthesis({"preset": "fast-5"}, arch) for arch in ("resnet34", "torchvision:alexnet"))
    assert ours == others
    assert (ours.bn_distance, ours.augmentation.padding) == ("balanced", "edge")


def test_the_large_image_preset_keeps_its_own_weights_for_every_teacher() -> None:
    spec = synthesis({"preset": "fast-50-imagenet"}, "resnet34")
    assert (spec.steps, spec.generator, spec.meta_gradient) == (50, "deep", "reptile")
    assert (spec.one_hot, spec.adversarial, spec.batch_size) == (0.1, 0.1, 100)
    assert spec.augmentation.resized_crop_scale == 0.75
    assert spec.reset_first_layer_at_batch is None


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_wins_over_every_preset(preset: str) -> None:
    spec = synthesis({"preset": preset, "steps": 7, "one_hot": 0.123, "batch_size": 11})
    assert (spec.preset, spec.steps, spec.one_hot, spec.batch_size) == (preset, 7, 0.123, 11)


def test_without_synthesis_or_with_an_empty_one_the_default_preset_counts() -> None:
    assert synthesis() == synthesis({}) == synthesis({"preset": "fast-5"})


def test_a_method_without_a_preset_has_its_own_defaults() -> None:
    assert synthesis({"method": "deepinversion"}).preset is None
    assert synthesis({"method": "deepinversion"}).steps == 2000


def test_the_client_s_own_fields_are_left_as_they_were() -> None:
    written: dict[str, Any] = {"preset": "fast-2"}
    fill_from_preset(written, "vgg11")
    assert written == {"preset": "fast-2"}


@pytest.mark.parametrize("preset", ["fast-3", "", 5, [], {}, True])
def test_an_unknown_preset_is_left_for_validation_to_refuse(preset: Any) -> None:
    assert fill_from_preset({"preset": preset}, None)["preset"] == preset
    with pytest.raises(ValueError, match="preset"):
        synthesis({"preset": preset})


@pytest.mark.parametrize(
    ("preset", "method"),
    [("fast-5", "deepinversion"), ("deepinversion-2k", "fast-meta"), ("fast-50-imagenet", "fast"), ("fast-5", [])],
)
def test_a_method_that_contradicts_the_preset_is_refused(preset: str, method: Any) -> None:
    with pytest.raises(ValidationError, match=f"`{preset}` holds settings of") as error:
        synthesis({"preset": preset, "method": method})
    assert error.value.errors()[0]["ctx"]["field"] == "synthesis.preset"


def test_the_ablation_runs_with_the_settings_of_the_method_that_it_cuts_down() -> None:
    spec = synthesis({"preset": "fast-10", "method": "fast"})
    assert (spec.method, spec.steps) == ("fast", 10)


@pytest.mark.parametrize("arch", ["timm:deit_tiny_patch16_224", "torchvision:vit_b_16", "timm:swinv2_tiny_window8_256"])
def test_a_vision_transformer_is_inverted_by_its_patches_where_nothing_else_is_asked(arch: str) -> None:
    assert fill_from_preset({"num_images": 64}, arch)["preset"] == "psaq-vit"
    assert fill_from_preset({"preset": "fast-5"}, arch)["method"] == "fast-meta"
    assert "preset" not in fill_from_preset({"method": "fast-meta"}, arch)


@pytest.mark.parametrize("arch", ["timm:levit_128", "torchvision:resnet50", "vit_b_16", "mine.swin:build", 3])
def test_any_other_network_keeps_the_default(arch: object) -> None:
    assert fill_from_preset({}, arch)["preset"] == "fast-5"
