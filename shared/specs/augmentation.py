"""Random changes of whole batches, which synthesis and distillation both make."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.specs.base import Spec

LARGEST_DEFAULT_PADDING = 4
PADDING_SHARE = 8
"""What the paper pads is an eighth of a CIFAR image. Four pixels of a digit of 16 would be a quarter of it."""


class AugmentationSpec(Spec):
    """Random changes of whole batches, drawn per image."""

    crop_padding: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Random crop after padding by this many pixels. Unset: an eighth of the shorter side, at most 4.",
    )
    padding: Literal["edge", "black"] = Field(
        "edge",
        description="What is padded: `edge` repeats the outermost pixels, `black` is the paper's. Black bars are in no "
        "training image, so images made behind them come out too bright, and a student learns statistics that real "
        "images do not have.",
    )
    resized_crop_scale: float | None = Field(
        None, gt=0, le=1, description="Random resized crop down to this share of the area; replaces crop_padding."
    )
    horizontal_flip: bool = Field(True, description="Mirror half of the images.")

    def padding_of(self, height: int, width: int) -> int:
        """Pixels that images of this size are padded by before they are cropped."""
        if self.crop_padding is not None:
            return self.crop_padding
        return min(LARGEST_DEFAULT_PADDING, min(height, width) // PADDING_SHARE)
