"""What every part of a job's specification has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

MAX_IMAGES = 100_000_000

StoragePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class Spec(BaseModel):
    """Base of every part: unknown fields are errors, since a misspelt field must not silently do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def invalid(field: str, message: str) -> PydanticCustomError:
    """An error of a rule that spans fields, filed under the field that the client should change."""
    return PydanticCustomError("invalid_field", "{message}", {"field": field, "message": message})
