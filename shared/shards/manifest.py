"""Shard manifests: what a sealed shard promises, and the names of shards and samples.

The manifest travels through Redis and lies beside the shard as ``NAME.json``. A reader trusts its sha256
and image count and never the tar alone: a tar that is cut at a member boundary still reads as a valid,
shorter one. This module needs only pydantic, so the API can use it.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ImageFormat = Literal["png", "jpg", "npy"]

JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,48}$")]
"""No dots, since the key of a sample ends at the first dot of its file name; short, since a tar header
holds 100 characters."""


def shard_name(job: str, partition: int, index: int, attempt: int) -> str:
    """File name of a shard.

    The attempt is part of it, so that a worker that was presumed dead and wakes up can never overwrite
    what its successor wrote.
    """
    return f"{job}-{partition:02d}-{index:06d}-{attempt:02d}.tar"


def sample_key(job: str, partition: int, index: int, position: int) -> str:
    """Key of one sample: unique over the job, and the same whichever attempt wrote it."""
    return f"{job}-{partition:02d}-{index:06d}-{position:06d}"


class ShardManifest(BaseModel):
    """What is in one sealed shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+\.tar$")] = Field(
        description="File name, without a folder."
    )
    job: JobId
    partition: int = Field(ge=0)
    index: int = Field(ge=0, description="Position among the partition's shards.")
    attempt: int = Field(ge=0, description="Attempt that wrote it.")
    images: int = Field(ge=1)
    bytes: int = Field(ge=0, description="Size of the tar.")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    class_counts: dict[int, int] = Field(description="Images of each target class; absent classes have none.")
    first_image: int = Field(ge=0, description="Index of the first image in its partition.")
    student_version: int = Field(ge=0, description="Newest student snapshot that took part; 0 is none.")
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    image_format: ImageFormat
    created_at: float = Field(description="Seconds since the epoch.")

    @property
    def sidecar_name(self) -> str:
        """File name of the manifest itself."""
        return str(PurePosixPath(self.name).with_suffix(".json"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.channels, self.height, self.width
