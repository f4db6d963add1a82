"""What a client writes to start a job, and what is stored of it.

A ``JobSpec`` is the only configuration of a job: the inverter, the trainer and the evaluator are built
from its parts, and no second class repeats its fields. Validation resolves everything: presets, the
student's shape and derived step counts are filled in, so the stored spec says in full what was run.
Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from shared.specs.base import Spec, StoragePath, invalid
from shared.specs.distillation import DistillationSpec, EvaluationSpec
from shared.specs.methods import METHODS, SynthesisSpec
from shared.specs.networks import StudentSpec, TeacherSpec
from shared.specs.precision import PrecisionName
from shared.specs.presets import PRESET_DISTILLATION, fill_from_preset
from shared.specs.synthesis import GeneratorSynthesis
from shared.specs.webhooks import WebhookAddress
from shared.tasks.descriptions import TASK_NAMES, describe_task

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]

EXTERNAL: Final = "external"
"""What stands for ``distillation`` where another program trains."""


def _or_external(schema: dict[str, JsonValue]) -> None:
    """Lets the schema of ``distillation`` say that the word may stand there, too."""
    choices = schema["anyOf"]
    assert isinstance(choices, list)
    choices.append({"const": EXTERNAL, "type": "string"})


class JobSpec(Spec):
    """A synthesis and distillation job. `distillation: null` only makes a dataset; `shards` only distils one;
    `distillation: external` lets another program train on the images while they are made."""

    name: str = Field("", max_length=200, description="For people; need not be unique.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Up to 16 strings of the client's own."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Same seed, same machine, lockstep pacing: same bytes.")
    precision: PrecisionName = Field(
        "auto",
        description="What networks compute in. `auto`: bfloat16 or float16 where the device is faster with it, float32 "
        "elsewhere. With `float32` machines differ in nothing but the order of sums.",
    )
    teacher: TeacherSpec
    student: StudentSpec | None = None
    synthesis: SynthesisSpec | None = None
    shards: StoragePath | None = Field(
        None,
        description="Instead of `synthesis`: an existing WebDataset under the storage root to distil from.",
    )
    initial_shards: StoragePath | None = Field(
        None,
        description="Beside `synthesis`: an existing WebDataset under the storage root whose images the student trains "
        "on, too, from the first step on. It counts neither as images made nor for warm-up and pacing.",
    )
    distillation: DistillationSpec | None = Field(default_factory=DistillationSpec, json_schema_extra=_or_external)
    external: bool = Field(
        False,
        description="Another program trains on the images while they are made, and says which shards it has used up: "
        "synthesis waits while it is `max_backlog` shards behind. `distillation: external` is short for this and "
        "`distillation: null`.",
    )
    evaluation: EvaluationSpec | None = None
    on_poor: Literal["warn", "stop"] = Field(
        "warn",
        description="What happens when images or student turn out to be poor, judged without labels. `warn`: the job "
        "goes on, and says so. `stop`: it fails with `poor_quality`, as soon as that is certain.",
    )
    webhook: WebhookAddress | None = Field(
        None,
        description="An https:// or http:// address that is told when the job has ended, signed and until it answers. "
        'The deployment allows its host. See "Webhooks" in the HTTP API.',
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = _with_external_spelt_out(data)
        written = data.get("synthesis")
        if written is None and data.get("shards") is None:
            written = {}
        teacher = data.get("teacher")
        if not isinstance(written, dict):
            return {**data, **_distillation_from_task(data, teacher)}
        arch = teacher.get("arch") if isinstance(teacher, dict) else None
        synthesis = fill_from_preset(written, arch)
        if data.get("shards") is None:
            synthesis = _fill_from_task(synthesis, teacher)
        filled = {**data, "synthesis": synthesis, **_distillation_of(synthesis.get("preset"), data)}
        return {**filled, **_distillation_from_task(filled, teacher)}

    @model_validator(mode="after")
    def _crops_fit_the_images(self) -> Self:
        smallest = min(self.teacher.input.height, self.teacher.input.width)
        for name, part in (("synthesis", self.synthesis), ("distillation", self.distillation)):
            augmentation = getattr(part, "augmentation", None)
            if part is None or augmentation is None:
                continue
            padding = augmentation.padding_of(self.teacher.input.height, self.teacher.input.width)
            if padding > smallest:
                raise invalid(f"{name}.augmentation.crop_padding", f"must not exceed the image size ({smallest})")
            resolved = {"augmentation": augmentation.model_copy(update={"crop_padding": padding})}
            object.__setattr__(self, name, part.model_copy(update=resolved))
        return self

    @model_validator(mode="after")
    def _check_parts_fit(self) -> Self:
        if self.shards is not None and self.synthesis is not None:
            raise invalid("shards", "give either `shards` or `synthesis`, not both")
        if self.external:
            self._check_another_program_trains()
        if self.initial_shards is not None and (self.synthesis is None or self.distillation is None):
            raise invalid("initial_shards", "adds to the images of a `synthesis` that a student is trained on")
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

    def _check_another_program_trains(self) -> None:
        if self.distillation is not None:
            raise invalid("external", "another program trains in the place of `distillation`; leave one of them out")
        if self.shards is not None:
            raise invalid("external", "nothing waits for a program that reads `shards`; give `synthesis` instead")
        if self.student is not None:
            raise invalid("student", "the student is the other program's when `distillation` is external; leave it out")
        if self.evaluation is not None:
            raise invalid("evaluation", "the other program measures its student itself; leave it out")

    def _with_resolved_steps(self, distillation: DistillationSpec) -> Self:
        """Steps follow from the batches in lockstep, and by default otherwise; they are stored as a number."""
        if self.synthesis is None:
            if distillation.steps is None:
                raise invalid("distillation.steps", "is required with `shards`")
            if distillation.warmup_batches is not None:
                raise invalid("distillation.warmup_batches", "has no meaning with `shards`; leave it out")
            return self._with_distillation(distillation, steps=distillation.steps)
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
        return self._with_distillation(distillation, steps=distillation.steps or derived, warmup_batches=warmup)

    def _with_distillation(self, distillation: DistillationSpec, *, steps: int, **resolved: int) -> Self:
        warmup_steps = distillation.warmup_steps_of(steps)
        update = {"steps": steps, "learning_rate_warmup_steps": warmup_steps, **resolved}
        # The instance is frozen for everyone else; validation is where it comes to be.
        object.__setattr__(self, "distillation", distillation.model_copy(update=update))
        return self


def _with_external_spelt_out(data: dict[str, Any]) -> dict[str, Any]:
    """The job's fields with ``distillation: external`` as what it is short for."""
    if data.get("distillation") == EXTERNAL:
        if data.get("external") is False:
            raise invalid("external", "contradicts `distillation: external`; leave it out")
        return {**data, "distillation": None, "external": True}
    if data.get("external") is True:
        return {"distillation": None, **data}
    return data


def _distillation_of(preset: object, data: dict[str, Any]) -> dict[str, Any]:
    """The ``distillation`` that a preset of the synthesis implies, as an update of the job's fields."""
    if not isinstance(preset, str) or preset not in PRESET_DISTILLATION:
        return {}
    implied = PRESET_DISTILLATION[preset]
    if implied is None:
        return {} if "distillation" in data or "student" in data else {"distillation": None}
    written = data.get("distillation", {})
    return {"distillation": {**implied, **written}} if isinstance(written, dict) else {}


OF_THE_OPTIMIZER: Final = ("optimizer", "learning_rate", "final_learning_rate", "momentum", "weight_decay")


def _distillation_from_task(data: dict[str, Any], teacher: Any) -> dict[str, Any]:
    """The job's ``distillation`` with the task's defaults where nothing else says anything, as an update."""
    name = teacher.get("task") if isinstance(teacher, dict) else None
    written = data.get("distillation", {})
    if name not in TASK_NAMES or not isinstance(written, dict):
        return {}
    defaults = dict(describe_task(str(name)).distillation_defaults)
    if not written.keys().isdisjoint(OF_THE_OPTIMIZER):
        # A step size goes with one optimizer: whoever names either does not mean the task's.
        defaults = {key: value for key, value in defaults.items() if key not in OF_THE_OPTIMIZER}
    return {"distillation": {**defaults, **written}} if defaults else {}


def _fill_from_task(synthesis: dict[str, Any], teacher: Any) -> dict[str, Any]:
    """The same with the task's defaults where neither client nor preset say anything, for methods that invert."""
    name = teacher.get("task") if isinstance(teacher, dict) else None
    method = METHODS.get(str(synthesis.get("method")))
    if name not in TASK_NAMES or method is None or not issubclass(method, GeneratorSynthesis):
        return synthesis
    return {**dict(describe_task(str(name)).synthesis_defaults), **synthesis}
