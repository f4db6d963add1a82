"""Operations on whole batches of images: pixels and bytes, normalization, random augmentation.

Pixels are floats in [0, 1]; only a network sees normalized values, through :class:`Normalization`. Random
changes are drawn per image but applied to the batch at once by one gather or one resampling, so that
they cost the same few kernel launches for any batch size, run where the images are, need no copy to the
host and pass gradients. Padding is added to pixels and not to normalized values, so that black is black.

Image *files* are the business of ``shared.shards.image_codec``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor, nn

from shared.specs import AugmentationSpec, InputSpec

LARGEST_ASPECT_CHANGE = 4 / 3
"""A random resized crop stretches an image by at most this much, as is customary for ImageNet."""


def to_bytes(images: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, each rounded to the nearest of the 256 levels; values outside are clipped."""
    return images.detach().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images as float32 pixels in [0, 1], which ``to_bytes`` turns into the same bytes again."""
    return images.to(torch.float32).div_(255)


class Normalization(nn.Module):
    """``(pixels - mean) / std`` per channel: what stands between pixels in [0, 1] and a network.

    (N, C, H, W) in and out, in the dtype and memory format of the input. The constants are buffers that
    follow ``.to(device)`` and are not part of the ``state_dict``: they belong to the spec.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, input: InputSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(input.mean, dtype=dtype).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input.std, dtype=dtype).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images of the same shape."""
        return (pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype)


class BatchAugmentation:
    """The random changes of an ``AugmentationSpec``, drawn anew per image.

    Either a crop after padding or, with ``resized_crop_scale``, a bilinear resized crop whose share of
    the area is uniform in [scale, 1] and whose aspect changes by up to 4/3; then a mirroring of half of the
    images. Differentiable in the images. Bytes may be augmented before they become floats, which moves a
    quarter of the memory; a resized crop of bytes is rounded to bytes again.

    Args:
        spec: what to do; with everything off a call returns its input itself and draws nothing.
        size: (height, width) of the images.

    Raises:
        ValueError: the padding exceeds the height or width, so a crop could miss the image.
    """

    def __init__(self, spec: AugmentationSpec, size: tuple[int, int]) -> None:
        self.size = size
        self.flip = spec.horizontal_flip
        self.scale = spec.resized_crop_scale
        self.padding = 0 if self.scale is not None else spec.padding_of(*size)
        self.repeats_edge = spec.padding == "edge"
        if self.padding > min(size):
            raise ValueError(
                f"augmentation.crop_padding is {self.padding} but the images are {size[0]}×{size[1]}: "
                f"use at most {min(size)}"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images; shape, dtype and memory format are those of the input.

        Args:
            images: (N, C, H, W), float pixels or uint8.
            generator: on the images' device, or on the CPU: then the draws do not depend on the device, and
                are sent over without waiting for it.
        """
        if images.shape[2:] != self.size:
            raise ValueError(f"images of {tuple(images.shape[2:])} were given to an augmentation of {self.size}")
        if self.scale is None and self.padding == 0 and not self.flip:
            return images
        vertical, horizontal, area, aspect, side = self._draw(images, generator)
        mirrored = (side < 0.5) & self.flip
        if self.scale is None:
            result = self._crop(images, vertical, horizontal, mirrored)
        else:
            result = self._resized_crop(images, self.scale, vertical, horizontal, area, aspect, mirrored)
        if images.is_contiguous(memory_format=torch.channels_last):
            result = result.contiguous(memory_format=torch.channels_last)
        return result

    def _draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(5, N) uniform in [0, 1), drawn and copied in one go whatever is switched on."""
        draws = torch.rand(5, len(images), generator=generator, device=generator.device)
        if images.device.type == "cuda" and generator.device.type == "cpu":
            draws = draws.pin_memory()  # without it the copy would not be asynchronous
        return draws.to(images.device, non_blocking=True)

    def _crop(self, images: Tensor, vertical: Tensor, horizontal: Tensor, mirrored: Tensor) -> Tensor:
        """One gather from the padded batch.

        No source pixel is read twice, so the backward pass adds at most one value to each: its result
        does not depend on the order of a GPU's atomic additions.
        """
        count, channels, height, width = images.shape
        padding, offsets = self.padding, 2 * self.padding + 1
        padded = self._padded(images) if padding else images
        # The float product may round up to `offsets` itself.
        top = (vertical * offsets).long().clamp_(max=offsets - 1)
        left = (horizontal * offsets).long().clamp_(max=offsets - 1)
        row = torch.arange(height, device=images.device) + top[:, None]  # (N, H)
        column = torch.arange(width, device=images.device).expand(count, width)
        column = torch.where(mirrored[:, None], width - 1 - column, column) + left[:, None]  # (N, W)
        source = row[:, :, None] * (width + 2 * padding) + column[:, None, :]  # (N, H, W)
        source = source.view(count, 1, -1).expand(count, channels, -1)
        return padded.flatten(2).gather(2, source).view(count, channels, height, width)

    def _padded(self, images: Tensor) -> Tensor:
        """With black, or with the outermost pixels: copies of slices, whose gradient is a sum in a fixed order."""
        if not self.repeats_edge:
            return F.pad(images, (self.padding,) * 4)
        for side in (2, 3):
            first, last = images.narrow(side, 0, 1), images.narrow(side, images.shape[side] - 1, 1)
            shape = [-1] * 4
            shape[side] = self.padding
            images = torch.cat([first.expand(shape), images, last.expand(shape)], side)
        return images

    @staticmethod
    def _resized_crop(
        images: Tensor,
        scale: float,
        vertical: Tensor,
        horizontal: Tensor,
        area: Tensor,
        aspect: Tensor,
        mirrored: Tensor,
    ) -> Tensor:
        """Bilinear resampling of a window that always fits into the image.

        Window sides are shares of the image's sides: √(area·aspect) and √(area/aspect). The aspect is
        log-uniform where both are at most 1, so no draw is rejected and the area is as drawn.
        """
        area = scale + (1 - scale) * area
        bound = (-area.log()).clamp(max=math.log(LARGEST_ASPECT_CHANGE))
        aspect = ((2 * aspect - 1) * bound).exp()
        width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
        zero = torch.zeros_like(area)
        # Coordinates run from -1 to 1, so a window of width w has its centre within ±(1 - w).
        across = torch.stack(
            [torch.where(mirrored, -width, width), zero, (2 * horizontal - 1) * (1 - width).clamp(min=0)], dim=1
        )
        down = torch.stack([zero, height, (2 * vertical - 1) * (1 - height).clamp(min=0)], dim=1)
        # Coordinates need more than half precision.
        pixels = images.to(torch.promote_types(images.dtype, torch.float32))
        affine = torch.stack([across, down], dim=1).to(pixels.dtype)  # (N, 2, 3)
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        # "border": an outermost sample may lie half a pixel beyond the centre of the edge pixel.
        result = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if not images.is_floating_point():
            result = result.round_().clamp_(0, 255)
        return result.to(images.dtype)


def resized_crops(images: Tensor, crops: Tensor) -> Tensor:
    """A crop of each image, enlarged bilinearly to the size of the images. Differentiable in the images.

    Nothing outside a crop shows at its edges. Both directions are products with a matrix for each image, so that,
    unlike scattered additions, the gradient on a GPU is the same every time.

    Args:
        images: (N, C, H, W) float.
        crops: (N, 4) int64 on the same device: top, left, height and width, inside the image.
    """
    top, left, height, width = crops.unbind(1)
    down = _enlargement(top, height, images.shape[2], images.dtype)  # (N, H, H)
    across = _enlargement(left, width, images.shape[3], images.dtype)  # (N, W, W)
    return down[:, None] @ images @ across.transpose(1, 2)[:, None]


def _enlargement(start: Tensor, length: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(N, size, size): what each place of a row of ``size`` takes from the places of its crop."""
    places = torch.arange(size, device=start.device)
    exact = torch.promote_types(dtype, torch.float32)
    source = ((places.to(exact) + 0.5) * length[:, None] / size - 0.5).clamp(min=0)  # (N, size), in the crop
    lower = source.floor().long()
    upper = torch.minimum(lower + 1, length[:, None] - 1)
    share = (source - lower)[:, :, None]
    columns = (places - start[:, None])[:, None, :]  # (N, 1, size): where a place of the image lies in the crop
    weights = (columns == lower[:, :, None]) * (1 - share) + (columns == upper[:, :, None]) * share
    return weights.to(dtype)


class BatchMixing:
    """Mixes every image of a batch with another one of it: CutMix (Yun et al., 2019) or mixup (Zhang et al., 2018).

    Labels are not needed: whoever trains on the result asks the teacher what it sees in the mixture. Shares, boxes and
    partners are drawn per image.

    Args:
        kind: ``cutmix`` pastes a box of the other image at the same place; a box that reaches over the edge is cut off
            there. ``mixup`` takes the weighted mean of both.
        alpha: the share of the other image is drawn from Beta(alpha, alpha).
    """

    def __init__(self, kind: Literal["cutmix", "mixup"], alpha: float) -> None:
        self.kind = kind
        self.alpha = alpha

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mixed images (N, C, H, W), float pixels, in the memory format of the input.

        Args:
            images: float pixels.
            generator: on the CPU.
        """
        count, _, height, width = images.shape
        partners = torch.randperm(count, generator=generator)
        draws = torch.rand(3, count, generator=generator, dtype=torch.float64)
        # The inverse of the distribution function: torch draws from Beta only by its global state.
        shares = torch.from_numpy(betaincinv(self.alpha, self.alpha, draws[0].numpy()))
        partners, draws, shares = (each.to(images.device, non_blocking=True) for each in (partners, draws, shares))
        others = images[partners]
        if self.kind == "mixup":
            return torch.lerp(images, others, shares.to(images.dtype).view(-1, 1, 1, 1))
        sides = shares.sqrt()
        inside_rows = self._inside(height, draws[1], sides)  # (N, H)
        inside_columns = self._inside(width, draws[2], sides)  # (N, W)
        return torch.where((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], others, images)

    @staticmethod
    def _inside(size: int, centres: Tensor, sides: Tensor) -> Tensor:
        """Which of ``size`` places lie in each image's interval: (N, size). Centres and sides are shares."""
        places = (torch.arange(size, device=sides.device) + 0.5) / size
        return (places - centres[:, None]).abs() < sides[:, None] / 2
