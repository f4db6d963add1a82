"""What a client writes to start a job, and what is stored of it.

A ``JobSpec`` is the only configuration of a job: the inverter, the trainer and the evaluator are built
from its parts, and no second class repeats its fields. Validation resolves everything: presets, the
student's shape and derived step counts are filled in, so the stored spec says in full what was run.
Nothing here imports torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shared.networks.registry import check_architecture
from shared.presets import PresetName, fill_from_preset

MAX_IMAGES = 100_000_000
MAX_PARTITIONS = 1024
MAX_IMAGE_VALUES = 3 * 2048 * 2048
"""Largest channels × height × width of one image."""


class Spec(BaseModel):
    """Base of every part: unknown fields are errors, since a misspelt field must not silently do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def invalid(field: str, message: str) -> PydanticCustomError:
    """An error of a rule that spans fields, filed under the field that the client should change."""
    return PydanticCustomError("invalid_field", "{message}", {"field": field, "message": message})


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
StoragePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class InputSpec(Spec):
    """The images that the teacher takes: their shape and the normalisation it was trained with."""

    channels: int = Field(3, ge=1, le=64, description="Colour channels.")
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
    def _check_normalisation(self) -> Self:
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
        description="A name of GET /architectures, `torchvision:NAME`, `timm:NAME`, or `package.module:factory` "
        "where the deployment allows that package.",
    )
    kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="Further keyword arguments of the network's constructor."
    )

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        try:
            check_architecture(arch)
        except ValueError as error:
            raise PydanticCustomError("unknown_architecture", "{message}", {"message": str(error)}) from error
        return arch


class TeacherSpec(NetworkSpec):
    """The trained network to distil. Its training data is never needed."""

    checkpoint: StoragePath = Field(
        description="Path of its weights under the storage root: safetensors, or a torch file that loads weights-only."
    )
    num_classes: int = Field(ge=2, le=100_000, description="Classes that the network tells apart.")
    input: InputSpec = Field(default_factory=InputSpec)


class StudentSpec(NetworkSpec):
    """The network to train. It takes the teacher's images and classes."""

    checkpoint: StoragePath | None = Field(
        None, description="Weights to start from, as for the teacher; without one it starts from its initialisation."
    )


class AugmentationSpec(Spec):
    """Random changes of whole batches, drawn per image."""

    crop_padding: int = Field(4, ge=0, le=256, description="Random crop after zero padding by this many pixels.")
    resized_crop_scale: float | None = Field(
        None, gt=0, le=1, description="Random resized crop down to this share of the area; replaces crop_padding."
    )
    horizontal_flip: bool = Field(True, description="Mirror half of the images.")


class SynthesisBase(Spec):
    """What every synthesis method has in common."""

    preset: PresetName | None = Field(None, description="Named settings; fields written beside it win over it.")
    num_images: int = Field(56_320, ge=1, le=MAX_IMAGES, description="Images to make in all.")
    batch_size: int = Field(256, ge=2, le=65_536, description="Images inverted together.")
    bn: float = Field(10.0, ge=0, le=1e6, description="Weight of the BatchNorm-statistics loss. 0 turns it off.")
    one_hot: float = Field(0.4, ge=0, le=1e6, description="Weight of the cross-entropy to the target class.")
    adversarial: float = Field(
        1.1, ge=0, le=1e6, description="Weight of the disagreement with the newest student. 0 turns it off."
    )
    batches_per_shard: int = Field(1, ge=1, le=10_000, description="Batches in one shard file.")
    image_format: Literal["png", "jpg", "npy"] = Field("png", description="File format of the images in a shard.")
    partitions: int = Field(
        1, ge=1, le=MAX_PARTITIONS, description="Independent generators that share the work; each occupies one worker."
    )
    max_backlog: int = Field(
        16, ge=1, le=100_000, description="Shards that synthesis may be ahead of distillation before it waits."
    )

    @model_validator(mode="after")
    def _every_partition_has_work(self) -> Self:
        if self.partitions > self.num_images:
            raise invalid("synthesis.partitions", f"must not exceed num_images ({self.num_images})")
        return self

    def images_of_partition(self, partition: int) -> int:
        """Images that one partition makes; the shares differ by at most one."""
        share, rest = divmod(self.num_images, self.partitions)
        return share + (partition < rest)

    @property
    def images_per_shard(self) -> int:
        """Images in every shard but a partition's last."""
        return self.batch_size * self.batches_per_shard

    @property
    def total_batches(self) -> int:
        """Batches over all partitions."""
        return sum(math.ceil(self.images_of_partition(p) / self.batch_size) for p in range(self.partitions))


class GeneratorSynthesis(SynthesisBase):
    """Settings of the methods that train a generator (Fang et al., AAAI 2022, Algorithm 1)."""

    steps: int = Field(5, ge=1, le=10_000, description="Inner steps per batch: the N of Fast-N.")
    generator: Literal["standard", "deep"] = Field(
        "standard", description="`standard` for small images; `deep` with a spatial latent for large ones."
    )
    generator_learning_rate: float = Field(3e-3, gt=0, le=10, description="Inner Adam step size of the generator.")
    latent_learning_rate: float = Field(0.01, gt=0, le=10, description="Inner Adam step size of the latents.")
    latent_dim: int = Field(256, ge=1, le=65_536, description="Length of a latent vector.")
    generator_width: int = Field(64, ge=1, le=4_096, description="Channels of the generator's last hidden layer.")
    bn_momentum: float = Field(
        0.9, ge=0, lt=1, description="Share of the running average in the matched BatchNorm statistics."
    )
    match_targets: bool = Field(
        True,
        description="Deal the balanced targets of a batch out to the images that the teacher already sees as such. "
        "Off, as in the paper, most labels of few-step images are not what the teacher sees.",
    )
    reset_first_layer_at_batch: int | None = Field(
        140, ge=1, description="Batch of a partition before which the generator's first layer is re-initialised once."
    )
    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)


class FastMetaSynthesis(GeneratorSynthesis):
    """Fast DFKD: the generator is meta-learned, so a few steps from its weights invert a whole batch."""

    method: Literal["fast-meta"] = "fast-meta"
    meta_gradient: Literal["fomaml", "reptile"] = Field(
        "fomaml", description="How the inner loop's result moves the generator."
    )


class FastSynthesis(GeneratorSynthesis):
    """The paper's ablation: the adapted generator is carried over as it is, with no meta step."""

    method: Literal["fast"] = "fast"


class DeepInversionSynthesis(SynthesisBase):
    """DeepInversion (Yin et al., CVPR 2020): pixels are optimised directly, thousands of steps a batch."""

    method: Literal["deepinversion"] = "deepinversion"
    steps: int = Field(2000, ge=1, le=1_000_000, description="Optimiser steps per batch.")
    learning_rate: float = Field(0.1, gt=0, le=10, description="Adam step size of the pixels.")
    one_hot: float = Field(1.0, ge=0, le=1e6, description="Weight of the cross-entropy to the target class.")
    adversarial: float = Field(
        1.0, ge=0, le=1e6, description="Weight of the Jensen-Shannon disagreement with the newest student."
    )
    total_variation: float = Field(
        0.01, ge=0, le=1e6, description="Weight of the mean absolute difference of neighbouring pixels."
    )
    l2: float = Field(3e-8, ge=0, le=1e6, description="Weight of the squared norm of the images.")
    jitter: int = Field(2, ge=0, le=256, description="Largest random shift in pixels.")
    horizontal_flip: bool = Field(True, description="Mirror half of the images in every step.")


SynthesisSpec = Annotated[FastMetaSynthesis | FastSynthesis | DeepInversionSynthesis, Field(discriminator="method")]
SYNTHESIS_METHODS = ("fast-meta", "fast", "deepinversion")


ExportFormat = Literal["torchscript", "torch-export", "onnx"]


class DistillationSpec(Spec):
    """How the student is trained: SGD with momentum on KL(teacher ‖ student) at a temperature."""

    steps: int | None = Field(
        None, ge=1, le=100_000_000, description="Steps in all. Unset: steps_per_batch for each batch after the warm-up."
    )
    steps_per_batch: int = Field(400, ge=1, le=1_000_000, description="Steps for each synthetic batch.")
    warmup_batches: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Batches that are only collected before step one. Unset: 20, or a tenth of a small job's batches.",
    )
    pacing: Literal["free", "lockstep"] = Field(
        "free",
        description="`free`: train on what is there while synthesis runs on. `lockstep`: steps_per_batch steps after "
        "each batch and synthesis waits for them, as in the paper.",
    )
    full_pool_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="With `free` pacing, the share of the steps that is kept until every image is in the pool.",
    )
    batch_size: int = Field(256, ge=2, le=65_536, description="Images per step.")
    learning_rate: float = Field(0.2, gt=0, le=100, description="Step size at the start; falls along a cosine.")
    final_learning_rate: float = Field(2e-4, ge=0, le=100, description="Step size at the end.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Of SGD.")
    temperature: float = Field(20.0, gt=0, le=1000, description="Softens both distributions before they are compared.")
    pool_capacity: int = Field(
        1_000_000, ge=2, le=MAX_IMAGES, description="Images kept in memory, 8 bits each; beyond it the oldest give way."
    )
    snapshot_every_steps: int = Field(
        200, ge=1, le=100_000_000, description="Steps between student snapshots for the adversarial term."
    )
    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)
    export: tuple[ExportFormat, ...] = Field(
        (),
        max_length=3,
        description="Files to make of the trained student besides its weights, for use without its code. A format that "
        "the network does not allow is left out, with the reason in the result.",
    )

    @model_validator(mode="after")
    def _learning_rate_falls(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            raise invalid("distillation.final_learning_rate", "must not be above learning_rate")
        return self


class EvaluationSpec(Spec):
    """Labelled images that are measured on and never trained on."""

    shards: StoragePath = Field(
        description="Path under the storage root of a labelled WebDataset: a tar, or several as name-{000..009}.tar."
    )
    every_steps: int = Field(200, ge=1, le=100_000_000, description="Distillation steps between measurements.")
    batch_size: int = Field(256, ge=1, le=65_536, description="Images measured together.")


class JobSpec(Spec):
    """A synthesis and distillation job. `distillation: null` only makes a dataset; `shards` only distils one."""

    name: str = Field("", max_length=200, description="For people; need not be unique.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Up to 16 strings of the client's own."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Same seed, same machine, lockstep pacing: same bytes.")
    teacher: TeacherSpec
    student: StudentSpec | None = None
    synthesis: SynthesisSpec | None = None
    shards: StoragePath | None = Field(
        None,
        description="Instead of `synthesis`: an existing WebDataset under the storage root to distil from.",
    )
    distillation: DistillationSpec | None = Field(default_factory=DistillationSpec)
    evaluation: EvaluationSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        written = data.get("synthesis")
        if written is None and data.get("shards") is None:
            written = {}
        if not isinstance(written, dict):
            return data
        teacher = data.get("teacher")
        arch = teacher.get("arch") if isinstance(teacher, dict) else None
        return {**data, "synthesis": fill_from_preset(written, arch)}

    @model_validator(mode="after")
    def _crops_fit_the_images(self) -> Self:
        smallest = min(self.teacher.input.height, self.teacher.input.width)
        for name, part in (("synthesis", self.synthesis), ("distillation", self.distillation)):
            augmentation = getattr(part, "augmentation", None)
            if augmentation is not None and augmentation.crop_padding > smallest:
                raise invalid(f"{name}.augmentation.crop_padding", f"must not exceed the image size ({smallest})")
        return self

    @model_validator(mode="after")
    def _check_parts_fit(self) -> Self:
        if self.shards is not None and self.synthesis is not None:
            raise invalid("shards", "give either `shards` or `synthesis`, not both")
        if self.distillation is None:
            if self.shards is not None:
                raise invalid("distillation", "`shards` without distillation leaves nothing to do")
            if self.evaluation is not None:
                raise invalid("evaluation", "there is no student to measure when `distillation` is null")
            if self.student is not None:
                raise invalid("student", "there is no student to train when `distillation` is null; leave it out")
            return self
        if self.student is None:
            raise invalid("student", "is required unless `distillation` is null")
        if self.distillation.pacing == "lockstep":
            if self.synthesis is None:
                raise invalid("distillation.pacing", "`lockstep` needs a synthesis to keep step with")
            if self.synthesis.partitions != 1:
                raise invalid("synthesis.partitions", "must be 1 with `lockstep` pacing")
        return self._with_resolved_steps(self.distillation)

    def _with_resolved_steps(self, distillation: DistillationSpec) -> Self:
        """Steps follow from the batches in lockstep, and by default otherwise; they are stored as a number."""
        if self.synthesis is None:
            if distillation.steps is None:
                raise invalid("distillation.steps", "is required with `shards`")
            if distillation.warmup_batches is not None:
                raise invalid("distillation.warmup_batches", "has no meaning with `shards`; leave it out")
            return self
        batches = self.synthesis.total_batches
        warmup = distillation.warmup_batches
        if warmup is None:
            warmup = min(20, batches // 10)
        after_warmup = batches - warmup
        if after_warmup <= 0:
            raise invalid("distillation.warmup_batches", f"must be below the {batches} batches of the job")
        derived = after_warmup * distillation.steps_per_batch
        if distillation.pacing == "lockstep" and distillation.steps not in (None, derived):
            raise invalid("distillation.steps", f"follows from the batches in lockstep ({derived}); leave it out")
        resolved = {"steps": distillation.steps or derived, "warmup_batches": warmup}
        # The instance is frozen for everyone else; validation is where it comes to be.
        object.__setattr__(self, "distillation", distillation.model_copy(update=resolved))
        return self
