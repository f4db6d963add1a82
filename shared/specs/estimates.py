"""What a job will make and how much room that takes, worked out from its specification alone.

Counts are exact. Sizes are estimates on the safe side: how well synthetic images compress is only known once
they are there, and few-step ones compress badly.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, Field

from shared.specs import InputSpec, JobSpec, SynthesisBase

TAR_BLOCK_BYTES = 512
SIDE_MEMBER_BYTES = 4 * TAR_BLOCK_BYTES
"""Header and content of a sample's ``.cls`` and ``.json``."""

HEADER_BYTES = {"png": 128, "jpg": 640, "npy": 128}
"""Of an image file, beside its pixels. Those take as much room as in memory: noise, which few-step images
resemble, is what no format packs."""


class JobEstimate(BaseModel):
    """What a job comes to. Null where only the data of an existing dataset would tell."""

    images: int | None = Field(description="Synthetic images, exactly. Null with `shards`.")
    rounds: int | None = Field(description="Synthetic batches over all partitions. Null with `shards`.")
    inversion_steps: int | None = Field(description="Optimizer steps of the inversion in all. Null with `shards`.")
    shards: int | None = Field(description="Shard files. Null with `shards`.")
    bytes: int | None = Field(description="Room for the shard files, rounded up. Null with `shards`.")
    kd_steps: int | None = Field(description="Distillation steps. Null without distillation.")
    kd_images: int | None = Field(description="Images that these steps see, repeats included.")
    pool_bytes: int | None = Field(description="Most room of the distiller's image pool, in memory and on disk.")
    workers: int = Field(description="Synthesis workers that the job can keep busy.")


def estimate(spec: JobSpec) -> JobEstimate:
    """The estimate of a resolved specification."""
    synthesis, distillation = spec.synthesis, spec.distillation
    pixels = math.prod(spec.teacher.input.shape)
    pool_bytes = None
    if distillation is not None:
        kept = distillation.pool_capacity
        pool_bytes = pixels * (min(kept, synthesis.num_images) if synthesis else kept)
    steps = distillation.steps if distillation else None
    return JobEstimate(
        images=synthesis.num_images if synthesis else None,
        rounds=synthesis.total_batches if synthesis else None,
        inversion_steps=synthesis.total_batches * synthesis.total_steps if synthesis else None,
        shards=_shards(synthesis) if synthesis else None,
        bytes=_bytes(synthesis, spec.teacher.input) if synthesis else None,
        kd_steps=steps,
        kd_images=steps * distillation.batch_size if distillation and steps else None,
        pool_bytes=pool_bytes,
        workers=synthesis.partitions if synthesis else 0,
    )


def _shards(synthesis: SynthesisBase) -> int:
    # Partitions differ by at most one image, so there are at most two sizes of them.
    share, rest = divmod(synthesis.num_images, synthesis.partitions)
    per_shard = synthesis.images_per_shard
    return rest * math.ceil((share + 1) / per_shard) + (synthesis.partitions - rest) * math.ceil(share / per_shard)


def _bytes(synthesis: SynthesisBase, input: InputSpec) -> int:
    # PNG has one more byte in each row of pixels.
    content = math.prod(input.shape) + input.height + HEADER_BYTES[synthesis.image_format]
    blocks = 1 + math.ceil(content / TAR_BLOCK_BYTES)
    # A tar ends with two empty blocks and is filled up to 20.
    return synthesis.num_images * (blocks * TAR_BLOCK_BYTES + SIDE_MEMBER_BYTES) + _shards(synthesis) * 10_240
