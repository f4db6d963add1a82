"""How images are made: one class for each inversion method of ours; ``methods`` adds those of other packages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shared.specs.augmentation import AugmentationSpec
from shared.specs.base import MAX_IMAGES, Spec, invalid
from shared.specs.presets import PresetName

MAX_PARTITIONS = 1024


GeneratorName = Literal["standard", "deep", "dcgan"]
GENERATOR_HELP = (
    "`standard` for small images; `deep` with a spatial latent for large ones; `dcgan`, which starts from a sixteenth "
    "of the size, for segmentation."
)


class SynthesisBase(Spec):
    """What every synthesis method has in common.

    A method of another package is a subclass with ``method: Literal["its-name"] = "its-name"``, the settings that it
    wants, and ``inverter``; an entry point ``fast_dfkd.inverters`` leads to it.
    """

    inverter: ClassVar[str] = ""
    """``module:class`` of the ``synth_service.inversion.Inverter``, where that is another package's."""

    term_labels: ClassVar[Mapping[str, str]] = {
        "one_hot": "Target class",
        "bn": "BatchNorm statistics",
        "adversarial": "Adversarial",
        "balance": "Class balance",
        "attention": "Patch similarity",
    }
    """The terms of the loss, in the order of charts: the names of ``Inverter.terms``, and what people call them. A
    field of the same name is the term's weight; at 0 there is no such term."""

    preset: PresetName | None = Field(None, description="Named settings; fields written next to it win over it.")
    num_images: int = Field(56_320, ge=1, le=MAX_IMAGES, description="Images to make in all.")
    batch_size: int = Field(256, ge=2, le=65_536, description="Images inverted together.")
    bn: float = Field(10.0, ge=0, le=1e6, description="Weight of the BatchNorm-statistics loss. 0 turns it off.")
    one_hot: float = Field(0.4, ge=0, le=1e6, description="Weight of the cross-entropy to the target class.")
    adversarial: float = Field(
        1.1, ge=0, le=1e6, description="Weight of the disagreement with the newest student. 0 turns it off."
    )
    balance: float = Field(
        0.0, ge=0, le=1e6, description="Weight of the negative entropy of the batch's mean prediction."
    )
    attention: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the entropy of patch similarities in the attention blocks of a vision transformer "
        "(DeiT, ViT, Swin), which has no BatchNorm statistics to match. 1 with the preset `psaq-vit`.",
    )
    batches_per_shard: int = Field(1, ge=1, le=10_000, description="Batches in one shard file.")
    image_format: Literal["png", "jpg", "npy"] = Field("png", description="File format of the images in a shard.")
    partitions: int = Field(
        1, ge=1, le=MAX_PARTITIONS, description="Independent generators that share the work; each occupies one worker."
    )
    max_backlog: int = Field(
        16,
        ge=1,
        le=100_000,
        description="Shards that synthesis may be ahead of distillation, or of another program that trains on the "
        "images (`external`), before it waits.",
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
    def total_steps(self) -> int:
        """Optimizer steps of a batch."""
        return int(getattr(self, "steps", 0))

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
    generator: GeneratorName = Field("standard", description=GENERATOR_HELP)
    generator_learning_rate: float = Field(3e-3, gt=0, le=10, description="Inner Adam step size of the generator.")
    latent_learning_rate: float = Field(0.01, gt=0, le=10, description="Inner Adam step size of the latents.")
    learn_latents: bool = Field(
        True,
        description="With `deep`: learn the latents like the generator's weights, as in the paper. Off: draw them anew "
        "for every batch, so that images at one place of a batch do not resemble each other.",
    )
    latent_dim: int = Field(256, ge=1, le=65_536, description="Length of a latent vector.")
    generator_width: int = Field(64, ge=1, le=4_096, description="Channels of the generator's last hidden layer.")
    bn_distance: Literal["balanced", "norm"] = Field(
        "balanced",
        description="How far statistics are from the teacher's. `balanced`: the divergence between the normal "
        "distributions that they stand for, mean over channels and layers, so that 1 is the same for any teacher; a "
        "teacher without BatchNorm goes without the term. `norm`: the paper's sum over layers, whose weight has to be "
        "found anew for each teacher.",
    )
    bn_momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the running average over earlier rounds in the matched BatchNorm statistics; 0.9 in the "
        "paper.",
    )
    match_targets: bool = Field(
        True,
        description="Deal the balanced targets of a batch out to the images that the teacher already sees as such. "
        "Off, as in the paper, most labels of few-step images are not what the teacher sees.",
    )
    reset_first_layer_at_batch: int | None = Field(
        140, ge=1, description="Batch of a partition before which the generator's first layer is re-initialized once."
    )
    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)


class FastMetaSynthesis(GeneratorSynthesis):
    """Fast DFKD: the generator is meta-learned, so a few steps from its weights invert a whole batch."""

    method: Literal["fast-meta"] = "fast-meta"
    meta_gradient: Literal["fomaml", "reptile"] = Field(
        "fomaml", description="How the inner loop's result moves the generator."
    )
    outer_generator_learning_rate: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Step size of the outer Adam for the generator. Unset: generator_learning_rate × steps.",
    )
    outer_latent_learning_rate: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Step size of the outer Adam for learned latents. Unset: latent_learning_rate × steps.",
    )
    reset_every: int | None = Field(
        None,
        ge=1,
        description="Batches of a partition after which learned latents are drawn anew and the outer Adam forgets; 50 "
        "in the authors' ImageNet runs.",
    )


class FastSynthesis(GeneratorSynthesis):
    """The paper's ablation: the adapted generator is carried over as it is, with no meta step."""

    method: Literal["fast"] = "fast"


class DFADSynthesis(SynthesisBase):
    """Data-free adversarial distillation (Fang et al., 2019): generator and student in turn, no inversion.

    As published with lockstep pacing, ``distillation.loss: l1``, ``steps_per_batch: 1`` and a pool of one batch.
    """

    term_labels: ClassVar[Mapping[str, str]] = {
        "adversarial": "Distance of student and teacher",
        "one_hot": "Target class",
        "bn": "BatchNorm statistics",
        "balance": "Class balance",
    }

    method: Literal["dfad"] = "dfad"
    bn: float = Field(0.0, ge=0, le=1e6, description="Weight of the BatchNorm-statistics loss. 0 turns it off.")
    one_hot: float = Field(0.0, ge=0, le=1e6, description="Weight of the cross-entropy to the target.")
    adversarial: float = Field(
        1.0, ge=0, le=1e6, description="Weight of -log(1 + mean distance of the student's logits from the teacher's)."
    )
    generator: GeneratorName = Field("dcgan", description=GENERATOR_HELP)
    generator_learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam step size of the generator.")
    latent_dim: int = Field(256, ge=1, le=65_536, description="Length of a latent vector.")
    generator_width: int = Field(64, ge=1, le=4_096, description="Channels of the generator's last hidden layer.")
    batches_per_generator_step: int = Field(
        5, ge=1, le=1_000_000, description="Batches that are handed out for each step of the generator."
    )

    @property
    def total_steps(self) -> int:
        """One look at the images of a batch."""
        return 1


class PixelSynthesis(SynthesisBase):
    """Settings of the methods that optimize pixels directly, thousands of steps a batch."""

    term_labels: ClassVar[Mapping[str, str]] = {
        **SynthesisBase.term_labels,
        "total_variation": "Total variation",
        "l2": "Squared norm",
    }

    steps: int = Field(2000, ge=1, le=1_000_000, description="Optimizer steps per batch.")
    learning_rate: float = Field(0.1, gt=0, le=10, description="Adam step size of the pixels.")
    one_hot: float = Field(1.0, ge=0, le=1e6, description="Weight of the cross-entropy to the target class.")
    adversarial: float = Field(
        1.0, ge=0, le=1e6, description="Weight of the Jensen-Shannon disagreement with the newest student."
    )
    total_variation: float = Field(
        0.01, ge=0, le=1e6, description="Weight of the mean absolute difference of neighbouring pixels."
    )
    total_variation_goal: (
        tuple[
            Annotated[float, Field(ge=0, le=100)],
            Annotated[float, Field(ge=0, le=100)],
        ]
        | None
    ) = Field(
        None,
        description="With `total_variation_norm: l2`: the range from which each batch draws the variation that it is "
        "to have, as a root mean square per value. Unset: as little as possible.",
    )
    l2: float = Field(3e-8, ge=0, le=1e6, description="Weight of the squared norm of the images.")
    jitter: int = Field(2, ge=0, le=256, description="Largest random shift in pixels.")
    horizontal_flip: bool = Field(True, description="Mirror half of the images in every step.")
    pooled_steps: int = Field(
        0, ge=0, le=1_000_000, description="Steps of a first stage, on images averaged over 2×2 pixels."
    )
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="How the step size continues after the warm-up, in each stage."
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="Steps of a stage in which the step size rises.")
    adam_betas: tuple[
        Annotated[float, Field(ge=0, lt=1)],
        Annotated[float, Field(ge=0, lt=1)],
    ] = Field((0.5, 0.9), description="Decay rates of Adam's two averages.")
    bn_first_layer: float = Field(
        1.0, ge=0, le=1e6, description="Factor of the first BatchNorm layer's part; the authors use 10 for ImageNet."
    )
    total_variation_norm: Literal["l1", "l2"] = Field(
        "l1", description="`l2`: 2-norms over the whole batch instead of mean absolute differences."
    )
    l2_norm: Literal["squared", "image", "batch"] = Field(
        "squared", description="What `l2` weighs: an image's squared norm, its norm, or the norm of the whole batch."
    )
    scale: Literal["unit-variance", "normalized"] = Field(
        "unit-variance",
        description="What is optimized and what the priors look at: pixels of about unit variance, or the network's "
        "own inputs as the authors do.",
    )
    clip: bool = Field(True, description="Keep pixels in [0, 1].")

    @property
    def total_steps(self) -> int:
        """Both stages."""
        return self.pooled_steps + self.steps

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        shortest = min(self.steps, self.pooled_steps or self.steps)
        if self.warmup_steps >= shortest and self.warmup_steps:
            raise invalid("synthesis.warmup_steps", f"must be below the {shortest} steps of a stage")
        goal = self.total_variation_goal
        if goal is not None and (self.total_variation_norm != "l2" or goal[0] > goal[1]):
            raise invalid(
                "synthesis.total_variation_goal", "is a range, lowest first, and needs total_variation_norm: l2"
            )
        return self


class DeepInversionSynthesis(PixelSynthesis):
    """DeepInversion (Yin et al., CVPR 2020): pixels are optimized directly, thousands of steps a batch."""

    method: Literal["deepinversion"] = "deepinversion"


class RecoverSynthesis(PixelSynthesis):
    """SRe2L and CDA: pixels that the teacher recognizes in every crop of them."""

    method: Literal["recover"] = "recover"
    steps: int = Field(4000, ge=1, le=1_000_000, description="Optimizer steps per batch.")
    batch_size: int = Field(100, ge=2, le=65_536, description="Images inverted together.")
    learning_rate: float = Field(0.25, gt=0, le=10, description="Adam step size of the pixels.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="How the step size continues after the warm-up, in each stage."
    )
    bn: float = Field(0.01, ge=0, le=1e6, description="Weight of the BatchNorm-statistics loss. 0 turns it off.")
    bn_first_layer: float = Field(10.0, ge=0, le=1e6, description="Factor of the first BatchNorm layer's part.")
    adversarial: float = Field(
        0.0, ge=0, le=1e6, description="Weight of the Jensen-Shannon disagreement with the newest student."
    )
    total_variation: float = Field(0.0, ge=0, le=1e6, description="Weight of the differences of neighbouring pixels.")
    l2: float = Field(0.0, ge=0, le=1e6, description="Weight of the norm of the images.")
    jitter: int = Field(32, ge=0, le=256, description="Largest random shift in pixels, around the edges.")
    scale: Literal["unit-variance", "normalized"] = Field(
        "normalized", description="What is optimized and what the priors look at, as for `deepinversion`."
    )
    crop_scale: float = Field(
        0.08, gt=0, le=1, description="Least share of the area that a random resized crop has. 1: no crops."
    )
    curriculum: Literal["none", "cosine", "linear"] = Field(
        "cosine",
        description="How the least share falls from 1 to crop_scale, as in CDA. `none`: it is crop_scale from the "
        "first step on, as in SRe2L.",
    )
    curriculum_share: float = Field(1.0, gt=0, le=1, description="Share of a stage's steps that this takes.")


def shown_terms(labels: Mapping[str, str], weights: Mapping[str, float], *, has_student: bool) -> dict[str, str]:
    """Names and labels of the terms that a job reports.

    Args:
        labels: ``term_labels`` of its method.
        weights: those that its spec gives; a term without a weight of its own counts.
        has_student: whether there is one to compete with.
    """
    absent = {name for name, weight in weights.items() if not weight}
    if not has_student:
        absent.add("adversarial")
    return {name: label for name, label in labels.items() if name not in absent}
