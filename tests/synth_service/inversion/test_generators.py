from __future__ import annotations

import math

import pytest
import torch

from synth_service.inversion.generators import GENERATORS, build_generator
from tests.golden import fill_by_formula, load_golden

PUBLISHED = {
    "generator_nz256_ngf64_img32_nc3": ("standard", 32, (2, 256)),
    "deep_generator_nz256_ngf64_img224_nc3": ("deep", 224, (1, 256, 14, 14)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_images_are_the_published_ones(name: str) -> None:
    kind, size, latent_shape = PUBLISHED[name]
    expected = load_golden()["generators_train_mode"][name]
    generator = GENERATORS[kind](256, 64, (3, size, size)).double()  # type: ignore[index]
    assert {key: list(value.shape) for key, value in generator.state_dict().items()} == expected["state_dict"]
    fill_by_formula(generator)
    latents = torch.sin(0.11 * torch.arange(math.prod(latent_shape), dtype=torch.float64)).reshape(latent_shape)
    assert latents.shape[1:] == generator.latent_shape
    with torch.no_grad():
        images = generator(latents)
    assert list(images.shape) == expected["output_shape"]
    assert images.mean().item() == pytest.approx(expected["output_mean"], rel=1e-6)
    assert images.std().item() == pytest.approx(expected["output_std"], rel=1e-6)
    assert images[0, 0, 0, :8].tolist() == pytest.approx(expected["output_first_row_channel0"], rel=1e-6)


@pytest.mark.parametrize("kind", ["standard", "deep"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 30, 45), (2, 4, 7), (5, 33, 32)])
def test_any_image_shape_can_be_generated(kind: str, shape: tuple[int, int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    generator = build_generator(kind, 5, 3, shape, random=random)  # type: ignore[arg-type]
    images = generator(torch.randn(2, *generator.latent_shape, generator=random))
    assert images.shape == (2, *shape)
    assert 0 <= images.min() < images.max() <= 1


def test_an_odd_size_is_the_centre_of_the_next_larger_grid() -> None:
    small, large = (GENERATORS["standard"](4, 3, (1, size, size)) for size in (29, 32))
    small.load_state_dict(large.state_dict())
    latents = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(latents), large(latents)[:, :, 1:30, 1:30])


def test_initial_parameters_come_from_the_given_generator_alone() -> None:
    global_state = torch.get_rng_state()
    first, second = (
        build_generator("standard", 4, 3, (1, 8, 8), random=torch.Generator().manual_seed(5)).state_dict()
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    bound = 1 / math.sqrt(4)
    assert 0.9 * bound < first["l1.0.weight"].abs().max() <= bound  # PyTorch's default for a linear layer


def test_resetting_the_first_layer_leaves_the_others() -> None:
    generator = build_generator("standard", 50, 3, (1, 8, 8), random=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.reset_first_layer(torch.Generator().manual_seed(1))
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"l1.0.weight", "l1.0.bias"}
    assert generator.first_layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
