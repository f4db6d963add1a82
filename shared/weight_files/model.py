"""An uploaded checkpoint, as the broker stores it and clients see it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Model(BaseModel):
    """An uploaded checkpoint."""

    id: str
    checkpoint: str = Field(description="What to write as `checkpoint` in a job: models/ID.")
    filename: str
    owner: str | None = Field(None, description="Name of the API key that uploaded it.")
    created_at: float = Field(description="Unix time.")
    bytes: int
    sha256: str
    format: str = Field(description="safetensors, torch, or torch-legacy (of before torch 1.6).")
    tensor_count: int
    parameters: int = Field(description="Values in all tensors together, buffers included.")
    architectures: list[str] = Field(description="Values of `arch` whose weights have these names and shapes.")
    num_classes: int | None = Field(None, description="Outputs of the last layer, where one can tell.")
    input_channels: int | None = Field(None, description="Inputs of the first convolution, where one can tell.")
