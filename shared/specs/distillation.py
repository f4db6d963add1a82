"""How the student is trained and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, model_validator

from shared.plugins import plugins
from shared.specs.augmentation import AugmentationSpec
from shared.specs.base import MAX_IMAGES, Spec, StoragePath, invalid

OWN_KD_LOSSES: Final = ("kl", "l1")
if TYPE_CHECKING:
    KDLossName = str
else:
    KDLossName = Literal[(*OWN_KD_LOSSES, *plugins("fast_dfkd.kd_losses"))]

ExportFormat = Literal["torchscript", "torch-export", "onnx"]

WARMUP_SHARE = 20

ADAMW_DEFAULTS = {"learning_rate": 1e-3, "final_learning_rate": 0.0, "weight_decay": 0.01}
"""As SRe2L trains on its images. SGD's step size would be two hundred times too large."""


class DistillationSpec(Spec):
    """How the student is trained: SGD or AdamW on the distance of its answers from the teacher's."""

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
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="`adamw` has defaults of its own: learning_rate 0.001, final_learning_rate 0, weight_decay 0.01.",
    )
    learning_rate: float = Field(0.1, gt=0, le=100, description="Largest step size; falls along a cosine.")
    final_learning_rate: float = Field(1e-4, ge=0, le=100, description="Step size at the end.")
    learning_rate_warmup_steps: int | None = Field(
        None,
        ge=0,
        le=100_000_000,
        description="Steps over which the step size first rises from zero, along a line. Unset: a twentieth of all.",
    )
    max_gradient_norm: float | None = Field(
        5.0,
        gt=0,
        le=1e6,
        description="Gradients longer than this, over all weights, are shortened to it. Without it a student without "
        "BatchNorm, or whose teacher's logits are large, diverges. Null: never.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Of the optimizer.")
    loss: KDLossName = Field(
        "kl", description="`kl`: KL(teacher ‖ student) at the temperature, times its square; `l1`: distance of logits."
    )
    temperature: float = Field(4.0, gt=0, le=1000, description="Softens both distributions before they are compared.")
    pool_capacity: int = Field(
        1_000_000,
        ge=2,
        le=MAX_IMAGES,
        description="Images kept to train on, 8 bits each, on disk where memory does not hold them; beyond it the "
        "oldest give way.",
    )
    snapshot_every_steps: int = Field(
        200, ge=1, le=100_000_000, description="Steps between student snapshots for the adversarial term."
    )
    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)
    procedural_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of every batch that is not taken from the shards but drawn by formula: shapes that hide one "
        "another and textures, chosen to fit the teacher's BatchNorm statistics. They show what inverted images lack. "
        "For a teacher without BatchNorm there are none.",
    )
    mix: Literal["cutmix", "mixup"] | None = Field(
        None,
        description="Mixes every image with another of its batch, and asks the teacher what it sees then. `cutmix` "
        "pastes a box of the other, `mixup` takes the weighted mean.",
    )
    mix_alpha: float = Field(
        1.0, gt=0, le=100, description="The share of the other image is drawn from Beta(mix_alpha, mix_alpha)."
    )
    export: tuple[ExportFormat, ...] = Field(
        (),
        max_length=3,
        description="Files to make of the trained student besides its weights, for use without its code. A format that "
        "the network does not allow is left out, with the reason in the result.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults_of_adamw(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("optimizer") != "adamw":
            return data
        return {**ADAMW_DEFAULTS, **data}

    def warmup_steps_of(self, steps: int) -> int:
        """Steps over which the step size rises, of so many in all."""
        warmup = self.learning_rate_warmup_steps
        return steps // WARMUP_SHARE if warmup is None else warmup

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
