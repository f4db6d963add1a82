import pytest
import torch

from distiller.dead_leaves import draw


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 24, 40), (2, 5, 3)])
def test_images_have_the_shape_that_was_asked_for(shape: tuple[int, int, int]) -> None:
    images = draw(50, shape, generator())

    assert images.shape == (50, *shape)
    assert images.dtype == torch.uint8


def test_the_same_seed_draws_the_same_and_another_others() -> None:
    first, again, other = (draw(20, (3, 16, 16), generator(seed)) for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_they_have_what_natural_images_have() -> None:
    images = draw(400, (3, 32, 32), generator()).float()

    assert images.std((0, 2, 3)).min() > 40  # dark and bright
    assert images.std((2, 3)).min(1).values.median() > 5  # seldom of one color
    steps = (images[..., 1:] - images[..., :-1]).abs()
    assert (steps < 8).float().mean() > 0.5  # mostly smooth,
    assert (steps > 60).float().mean() > 0.01  # with edges
    is_colored = (images[:, 0] - images[:, 1]).abs().mean((1, 2)) > 10
    assert 0.1 < is_colored.float().mean() < 0.9
    assert len({tuple(image.flatten()[:64].tolist()) for image in images}) > 350  # no two alike
