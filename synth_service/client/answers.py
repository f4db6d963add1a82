"""What the API answers with, where it is no job, event or shard manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from shared.jobs import JobRecord
from shared.specs.estimates import JobEstimate

J = TypeVar("J", bound=JobRecord)
"""A job, with methods that block or with methods that are to be awaited."""


class JobPage(BaseModel, Generic[J]):
    """Part of the list of jobs, newest first."""

    data: list[J]
    has_more: bool = False


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """Part of a list."""

    data: list[T]
    has_more: bool = False


@dataclass(frozen=True)
class Poll(Generic[J]):
    """A job as the last poll found it, and how long the server would like to be left alone."""

    job: J
    retry_after_seconds: float | None


class ValidatedJob(BaseModel):
    """A job that would be accepted."""

    spec: dict[str, JsonValue] = Field(description="The resolved specification.")
    estimate: JobEstimate


class MetricRow(BaseModel):
    """Values that a worker measured at one step."""

    id: str
    task: str
    at: float
    step: int
    values: dict[str, float | None]


class WorkerDetail(BaseModel):
    """A worker that was heard of lately. Workers may tell more of themselves than is named here."""

    model_config = ConfigDict(extra="allow")

    name: str
    role: str | None = None
    job: str | None = None
    at: float | None = None


class ModelDetail(BaseModel):
    """A checkpoint that was uploaded. The API may tell more of it than is named here."""

    model_config = ConfigDict(extra="allow")

    id: str
    checkpoint: str = Field(description="What a job writes as `checkpoint`.")
    filename: str = ""
    created_at: float | None = None
    bytes: int
    sha256: str
    format: str = ""
    parameters: int | None = None
    architectures: list[str] = Field(default_factory=list, description="Networks with such weights.")
    num_classes: int | None = None
    input_channels: int | None = None
