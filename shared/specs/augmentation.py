"""Random changes of whole batches, which synthesis and distillation both make."""

from __future__ import annotations

from pydantic import Field

from shared.specs.base import Spec


class AugmentationSpec(Spec):
    """Random changes of whole batches, drawn per image."""

    crop_padding: int = Field(4, ge=0, le=256, description="Random crop after zero padding by this many pixels.")
    resized_crop_scale: float | None = Field(
        None, gt=0, le=1, description="Random resized crop down to this share of the area; replaces crop_padding."
    )
    horizontal_flip: bool = Field(True, description="Mirror half of the images.")
