"""Teacher and student: how each is built, where its weights are, and the images that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError, to_json

from shared.specs.architectures import check_architecture
from shared.specs.base import Spec, StoragePath, invalid
from shared.tasks.descriptions import TASK_NAMES

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[TASK_NAMES]

MAX_IMAGE_VALUES = 3 * 2048 * 2048
MAX_KWARGS_BYTES = 16_000
"""Largest channels × height × width of one image."""


class InputSpec(Spec):
    """The images that the teacher takes: their shape and the normalization it was trained with."""

    channels: int = Field(3, ge=1, le=64, description="Color channels.")
    height: int = Field(32, ge=4, le=2048, description="Height in pixels.")
    width: int = Field(32, ge=4, le=2048, description="Width in pixels.")
    mean: tuple[float, ...] = Field(
        (0.0,), description="Per-channel mean that is subtracted from pixels in [0, 1]; one value serves all channels."
    )
    std: tuple[float, ...] = Field(
        (1.0,), description="Per-channel standard deviation that pixels are divided by; one value serves all channels."
    )

    @model_validator(mode="before")
    @classmethod
    def _spread_single_values(cls, data: Any) -> Any:
        """One mean or std for all channels is written out, so that the stored spec is explicit."""
        if not isinstance(data, dict):
            return data
        channels = data.get("channels", 3)
        spread = dict(data)
        for name, default in (("mean", 0.0), ("std", 1.0)):
            value = data.get(name, default)
            value = [value] if isinstance(value, (int, float)) else value
            if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(channels, int) and channels <= 64:
                spread[name] = list(value) * max(channels, 1)
        return spread

    @model_validator(mode="after")
    def _check_normalization(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise invalid(
                    f"input.{name}", f"has {len(values)} values for {self.channels} channels; give one, or one each"
                )
        if any(value <= 0 for value in self.std):
            raise invalid("input.std", "must be above 0 in every channel")
        if self.channels * self.height * self.width > MAX_IMAGE_VALUES:
            raise invalid("input.height", f"channels × height × width must be at most {MAX_IMAGE_VALUES:,}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


class NetworkSpec(Spec):
    """A network: how it is built and where its weights are."""

    arch: str = Field(
        max_length=200,
        description="A name of GET /architectures, `torchvision:NAME`, `timm:NAME`, `transformers:MODEL_TYPE`, or "
        "`package.module:factory` where the deployment allows that package.",
    )
    kwargs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Further keyword arguments of the network's constructor, up to 16 kB of JSON.",
    )

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        try:
            check_architecture(arch)
        except ValueError as error:
            raise PydanticCustomError("unknown_architecture", "{message}", {"message": str(error)}) from error
        return arch

    @field_validator("kwargs")
    @classmethod
    def _small_kwargs(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        # Every job is kept in memory with all it says, and every poll reads it.
        written = len(to_json(kwargs))
        if written > MAX_KWARGS_BYTES:
            message = f"are {written:,} bytes of JSON; at most {MAX_KWARGS_BYTES:,}"
            raise PydanticCustomError("kwargs_too_large", "{message}", {"message": message})
        return kwargs


class TeacherSpec(NetworkSpec):
    """The trained network to distil. Its training data is never needed."""

    checkpoint: StoragePath = Field(
        description="Path of its weights under the storage root: safetensors, or a torch file that loads weights-only."
    )
    task: TaskName = Field("classification", description="What the network does.")
    num_classes: int = Field(ge=2, le=100_000, description="Classes that the network tells apart.")
    ignore_index: int = Field(
        255,
        ge=0,
        le=65_535,
        description="Of label maps: the value of pixels whose class is not known. They are not measured.",
    )
    input: InputSpec = Field(default_factory=InputSpec)

    @model_validator(mode="after")
    def _ignored_is_no_class(self) -> Self:
        maps = self.task != "classification"
        if maps and self.ignore_index < self.num_classes and "ignore_index" in self.model_fields_set:
            raise invalid("teacher.ignore_index", f"must not be one of the {self.num_classes} classes")
        if maps and self.num_classes > 65_535:
            raise invalid("teacher.num_classes", "must be at most 65,535: label maps have 16 bits")
        return self

    @property
    def ignored_label(self) -> int:
        """``ignore_index``, or what takes its place where the default is a class."""
        return self.ignore_index if self.ignore_index >= self.num_classes else 65_535


class StudentSpec(NetworkSpec):
    """The network to train. It takes the teacher's images and classes."""

    checkpoint: StoragePath | None = Field(
        None, description="Weights to start from, as for the teacher; without one it starts from its initialization."
    )
