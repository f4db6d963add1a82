from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.networks.image_operations import BatchAugmentation, BatchMixing, Normalization, to_bytes, to_pixels
from shared.specs import AugmentationSpec, InputSpec

OFF = AugmentationSpec(crop_padding=0, horizontal_flip=False)
CROP = AugmentationSpec(crop_padding=2, horizontal_flip=False)
FLIP = AugmentationSpec(crop_padding=0, horizontal_flip=True)
CROP_AND_FLIP = AugmentationSpec(crop_padding=2, horizontal_flip=True)
RESIZED = AugmentationSpec(resized_crop_scale=0.5, horizontal_flip=False)
RESIZED_AND_FLIP = AugmentationSpec(resized_crop_scale=0.5, horizontal_flip=True)
ALL = [OFF, CROP, FLIP, CROP_AND_FLIP, RESIZED, RESIZED_AND_FLIP]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int = 64, channels: int = 3, height: int = 6, width: int = 8) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(9))


def test_bytes_are_rounded_to_the_nearest_level_and_clipped() -> None:
    pixels = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, -0.3, 1.7])
    assert to_bytes(pixels).tolist() == [0, 0, 1, 255, 255, 0, 255]


def test_every_byte_survives_the_way_through_pixels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    pixels = to_pixels(levels)
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert torch.equal(to_bytes(pixels), levels)


def test_normalization_is_per_channel_and_keeps_no_state() -> None:
    normalize = Normalization(InputSpec(channels=2, height=4, width=4, mean=(0.5, 0.25), std=(0.5, 2.0)))
    result = normalize(torch.ones(1, 2, 4, 4))
    assert torch.equal(result[0, 0], torch.full((4, 4), 1.0))
    assert torch.equal(result[0, 1], torch.full((4, 4), 0.375))
    assert normalize.state_dict() == {}
    assert normalize(torch.ones(1, 2, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_augmentation_with_everything_off_returns_its_input_and_draws_nothing() -> None:
    images, generator = random_images(), seeded()
    before = generator.get_state()
    assert BatchAugmentation(OFF, (6, 8))(images, generator) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("padding", "mode"), [("black", "constant"), ("edge", "replicate")])
def test_a_crop_is_a_shift_and_every_shift_occurs(padding: str, mode: str) -> None:
    images = random_images(count=400)
    crop = CROP.model_copy(update={"padding": padding})
    cropped = BatchAugmentation(crop, (6, 8))(images, seeded())
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode=mode)
    shifts = set()
    for image, source in zip(cropped, padded, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, source[:, top : top + 6, left : left + 8])
        ]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) == 25


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others() -> None:
    images = random_images(count=400)
    flipped = BatchAugmentation(FLIP, (6, 8))(images, seeded())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 150 < int(mirrored.sum()) < 250


def test_a_resized_crop_of_a_ramp_is_a_ramp_within_its_range() -> None:
    """Bilinear resampling of a linear image is linear: its slope is the window's width, per image."""
    ramp = (torch.arange(32.0) / 32).expand(200, 1, 32, 32)
    spec = AugmentationSpec(resized_crop_scale=0.25, horizontal_flip=False)
    across = BatchAugmentation(spec, (32, 32))(ramp, seeded())
    down = BatchAugmentation(spec, (32, 32))(ramp.transpose(2, 3), seeded())
    width = (across[:, 0, 16, 17] - across[:, 0, 16, 16]) * 32
    height = (down[:, 0, 17, 16] - down[:, 0, 16, 16]) * 32
    area, aspect = width * height, width / height
    assert width.max() <= 1 + 1e-4
    assert height.max() <= 1 + 1e-4
    assert 0.25 - 1e-3 < area.min() < 0.3
    assert 0.95 < area.max() <= 1 + 1e-3
    assert aspect.max() <= 4 / 3 + 1e-2
    assert aspect.min() >= 3 / 4 - 1e-2
    assert aspect.std() > 0.05


def test_a_resized_crop_of_the_whole_area_changes_nothing() -> None:
    spec = AugmentationSpec(resized_crop_scale=1.0, horizontal_flip=False)
    images = random_images()
    torch.testing.assert_close(BatchAugmentation(spec, (6, 8))(images, seeded()), images, rtol=0, atol=1e-5)


def test_a_resized_crop_invents_no_dark_edge() -> None:
    white = torch.ones(64, 3, 6, 8)
    torch.testing.assert_close(BatchAugmentation(RESIZED_AND_FLIP, (6, 8))(white, seeded()), white)


def test_a_mirrored_resized_crop_is_the_mirror_image_of_the_plain_one() -> None:
    images = random_images()
    plain = BatchAugmentation(RESIZED, (6, 8))(images, seeded())
    mixed = BatchAugmentation(RESIZED_AND_FLIP, (6, 8))(images, seeded())
    mirrored = torch.tensor([not torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, mixed, strict=True)])
    assert 15 < int(mirrored.sum()) < 49
    torch.testing.assert_close(mixed[mirrored], plain[mirrored].flip(3))


@pytest.mark.parametrize("spec", [CROP, FLIP, CROP_AND_FLIP])
def test_bytes_are_augmented_exactly_as_their_pixels(spec: AugmentationSpec) -> None:
    images = to_bytes(random_images())
    augment = BatchAugmentation(spec, (6, 8))
    augmented = augment(images, seeded())
    assert augmented.dtype == torch.uint8
    assert torch.equal(to_pixels(augmented), augment(to_pixels(images), seeded()))


def test_a_resized_crop_of_bytes_is_rounded() -> None:
    images = to_bytes(random_images())
    augment = BatchAugmentation(RESIZED, (6, 8))
    exact = augment(images.double(), seeded())
    assert (augment(images, seeded()) - exact).abs().max() < 0.5 + 1e-3


@pytest.mark.parametrize("spec", [CROP_AND_FLIP, RESIZED_AND_FLIP])
def test_gradients_are_those_of_finite_differences(spec: AugmentationSpec) -> None:
    images = random_images(count=3, channels=2).double().requires_grad_()
    augment = BatchAugmentation(spec, (6, 8))
    assert torch.autograd.gradcheck(lambda x: augment(x, seeded()), (images,))


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shape_dtype_and_memory_format_are_kept(spec: AugmentationSpec, memory_format: torch.memory_format) -> None:
    images = random_images().contiguous(memory_format=memory_format)
    for batch in (images, images.double(), to_bytes(images).contiguous(memory_format=memory_format)):
        result = BatchAugmentation(spec, (6, 8))(batch, seeded())
        assert (result.shape, result.dtype) == (batch.shape, batch.dtype)
        assert result.is_contiguous(memory_format=memory_format)


def test_memory_format_does_not_change_the_result() -> None:
    images = random_images()
    for spec in ALL:
        augment = BatchAugmentation(spec, (6, 8))
        plain = augment(images, seeded())
        torch.testing.assert_close(augment(images.contiguous(memory_format=torch.channels_last), seeded()), plain)


@pytest.mark.parametrize("spec", [CROP_AND_FLIP, RESIZED_AND_FLIP])
def test_the_same_seed_draws_the_same_and_the_next_call_draws_anew(spec: AugmentationSpec) -> None:
    images, augment, generator = random_images(), BatchAugmentation(spec, (6, 8)), seeded(1)
    first, second = augment(images, generator), augment(images, generator)
    assert torch.equal(first, augment(images, seeded(1)))
    assert not torch.equal(first, second)


def test_padding_beyond_the_image_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"crop_padding is 7 .* 6×8: use at most 6"):
        BatchAugmentation(AugmentationSpec(crop_padding=7), (6, 8))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 8\) were given to an augmentation of \(8, 8\)"):
        BatchAugmentation(CROP, (8, 8))(random_images(), seeded())


def test_cutmix_pastes_a_box_of_one_other_image_of_the_batch() -> None:
    images = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 3, 12, 20).contiguous()
    mixed = BatchMixing("cutmix", 1.0)(images, torch.Generator().manual_seed(0))
    shares = []
    for own, image in zip(images[:, 0, 0, 0], mixed, strict=True):
        foreign = image != own
        shares.append(float(foreign.float().mean()))
        assert len(image[foreign].unique()) <= 1
        rows, columns = foreign[0].any(1), foreign[0].any(0)
        assert bool((foreign == rows[:, None] & columns).all()), "the foreign pixels are no box"
    # Half of the area on average, less what is cut off at the edges.
    assert 0.2 < sum(shares) / len(shares) < 0.5


def test_mixup_takes_the_weighted_mean_with_another_image() -> None:
    images = torch.zeros(4096, 1, 1, 1)
    images[:2048] = 1
    mixed = BatchMixing("mixup", 0.5)(images, torch.Generator().manual_seed(0)).flatten()
    between = mixed[(mixed > 0) & (mixed < 1)]
    assert 1900 < len(between) < 2200  # those whose partner differs
    assert float(between.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(between.var()) == pytest.approx(1 / 8, abs=0.01)  # of Beta(0.5, 0.5)
