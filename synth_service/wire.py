"""What travels between API and client: every model of an answer, once, for both ends.

The API fills these models; the client parses answers into the same ones. An API may be newer than its client, so what a
client does not know is ignored or, where the model says so, kept as an extra.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from shared.api_keys import DEFAULT_SCOPES, Allowance, Scope
from shared.jobs import Event, JobRecord
from shared.shards.manifest import ShardManifest
from shared.specs.estimates import JobEstimate
from shared.weight_files.inspection import TensorEntry
from shared.weight_files.model import Model as Model

T = TypeVar("T")

STREAM_ID_PATTERN: Final = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
"""Ids of events, shards and measurements: of entries of Redis streams. 19 digits always fit into their 64 bits."""

MORE = "Whether there are more; ask for them with `after` = the last id of this page."


class Page(BaseModel, Generic[T]):
    """Part of a list."""

    data: list[T]
    has_more: bool = Field(False, description=MORE)


class JobPage(Page[JobRecord]):
    """One page of jobs, newest first."""


class ValidatedJob(BaseModel):
    """A job that would be accepted."""

    model_config = ConfigDict(frozen=True)

    spec: dict[str, JsonValue] = Field(description="The resolved specification: presets and derived values filled in.")
    estimate: JobEstimate


class EventPage(Page[Event]):
    """Events, oldest first."""


class Shard(ShardManifest):
    """A shard that counts, with its place in the job's stream."""

    id: str = Field(description="Place in the order of announcement; `after` takes it.")

    def manifest(self) -> ShardManifest:
        """The manifest alone."""
        return ShardManifest.model_validate(self.model_dump(exclude={"id"}))


class ShardPage(Page[Shard]):
    """Shards in the order of their announcement."""


class ConsumedUntil(BaseModel):
    """How far a program has come that trains on the images of a job."""

    model_config = ConfigDict(extra="forbid")

    until: str = Field(
        pattern=STREAM_ID_PATTERN,
        description="Id of a shard, as `GET /jobs/{id}/shards` shows it: used up, like all before.",
    )


class Consumed(BaseModel):
    """How far the service now takes the program to be: as far as the furthest that it has ever said."""

    until: str = Field(description="Id of the last shard that is used up; `0` before the first.")
    shards_consumed: int = Field(description="How many there are up to it.")
    shards: int = Field(description="Shards announced so far.")


class MetricRow(BaseModel):
    """Values that a worker measured at one step."""

    id: str = Field(description="Orders the rows of a job; `after` takes it.")
    task: str = Field(description="role:partition.")
    at: float = Field(description="Unix time.")
    step: int = Field(description="Distillation step, or synthetic batch of the partition.")
    values: dict[str, float | None] = Field(description="By series. Null: not a finite number.")


class MetricList(BaseModel):
    """Measured values, oldest first. The last row is the newest there is, unless `has_more`."""

    data: list[MetricRow]
    has_more: bool = Field(description="Whether `limit` cut the list; ask on with `after` = the last id.")


class ModelPage(Page[Model]):
    """One page of models, newest first."""


class ModelDetail(Model):
    """A model with its tensors."""

    tensors: list[TensorEntry]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ArchitectureDetail(BaseModel):
    """A network that jobs may name."""

    name: str
    family: str
    description: str
    arguments: dict[str, Any] = Field(description="What the name stands for; `kwargs` of the job may add to it.")


class ArchitectureList(BaseModel):
    """All networks with a name, and the forms for those from elsewhere."""

    data: list[ArchitectureDetail]
    forms: list[str] = Field(description="Other ways to write `arch`.")


class Preset(BaseModel):
    """Settings of `synthesis` under a name. Fields that a job writes win over them."""

    name: str
    is_default: bool
    settings: dict[str, Any]
    by_teacher: dict[str, dict[str, float]] = Field(description="Settings that depend on `teacher.arch`.")


class PresetList(BaseModel):
    """All presets."""

    data: list[Preset]


def _figure(value: object) -> float | None:
    """A number as Redis or JSON gives it; None for what a worker of another version may say in its place."""
    try:
        figure = float(value)  # type: ignore[arg-type]  # whatever cannot be converted is None
    except (TypeError, ValueError, OverflowError):
        return None
    return figure if math.isfinite(figure) else None


Figure = Annotated[float | None, BeforeValidator(_figure)]
Count = Annotated[int | None, BeforeValidator(lambda value: None if (read := _figure(value)) is None else int(read))]


class WorkerDetail(BaseModel):
    """A worker that was heard of lately. Workers may tell more of themselves than is named here."""

    model_config = ConfigDict(extra="allow")

    name: str
    role: str | None = None
    job: str | None = Field(None, description="The job it works on; empty when idle.")
    at: Figure = Field(None, description="Unix time of its last sign of life.")
    pid: Count = None
    device: str | None = Field(None, description="As torch names it.")
    device_name: str | None = None
    memory_total_bytes: Count = Field(None, description="Of the device.")
    memory_available_bytes: Count = Field(None, description="Of the device.")
    process_memory_bytes: Count = None
    cpu_percent: Figure = Field(None, description="Of one core; several threads take more than 100.")
    gpu_percent: Figure = None


class WorkerList(BaseModel):
    """All workers."""

    data: list[WorkerDetail]


class FieldError(BaseModel):
    """One thing to change in the request."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="Path of the field, such as `synthesis.num_images`; empty for the whole body.")
    message: str


class ProblemDetail(BaseModel):
    """An error, as RFC 9457 describes one. Branch on ``code``: it is stable, the texts are not."""

    model_config = ConfigDict(json_schema_extra={"description": "An error (RFC 9457). Branch on `code`: it is stable."})

    type: str = Field("about:blank", description="Always about:blank; `code` tells errors apart.")
    title: str = Field(description="The phrase of the HTTP status.")
    status: int
    code: str = Field(description="Stable and snake_case.")
    detail: str
    errors: list[FieldError] | None = Field(None, description="The offending fields, where there are any.")
    hint: str | None = Field(None, description="What to do about it, where that is not obvious.")


class KeyRequest(BaseModel):
    """A key that is to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="Whose it is; shown in jobs and logs.")
    scopes: list[Scope] = Field(
        default_factory=lambda: sorted(DEFAULT_SCOPES), max_length=4, description="What it may do."
    )
    expires_at: float | None = Field(None, gt=0, le=32_503_680_000, description="Unix time after which it is refused.")
    allowance: Allowance = Field(default_factory=Allowance, description="How much its owner may have at a time.")


class KeyDetail(BaseModel):
    """A key that the service accepts. The key itself is kept nowhere."""

    name: str
    fingerprint: str = Field(description="Tells the keys of one name apart; what to revoke one by.")
    scopes: list[Scope]
    expires_at: float | None = None
    allowance: Allowance = Field(default_factory=Allowance)
    is_configured: bool = Field(description="Whether it comes from DFKD_API_KEYS and not from POST /keys.")


class KeyList(BaseModel):
    """All keys that count now."""

    data: list[KeyDetail]


class NewKey(KeyDetail):
    """A key that was just made."""

    key: str = Field(description="The key. It is shown this once.")
