"""Everything a deployment sets through the environment, in one place.

Variables carry the prefix ``DFKD_``; ``REDIS_URL`` is also read under its customary bare name. A job
never changes a setting and a setting never changes what a job's spec means.
"""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Settings of one process, read from the environment when constructed."""

    model_config = SettingsConfigDict(env_prefix="DFKD_", env_file=None, extra="ignore", frozen=True)

    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("DFKD_REDIS_URL", "REDIS_URL", "redis_url"),
        description="Redis or Valkey server. Unset: `dfkd up` starts one of its own.",
    )
    storage: str = Field("dfkd-data", description="Storage root: a folder or an s3:// address.")

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 picks a free one.")
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest accepted request body.")
    max_queued_jobs: int = Field(10_000, ge=1, description="POST /jobs answers 429 above this many unfinished jobs.")

    lease_seconds: float = Field(15.0, gt=0, le=3600, description="A worker silent for longer loses its claim.")
    max_attempts: int = Field(
        3, ge=1, le=100, description="Attempts in a row without progress after which a job fails."
    )
    max_damaged_shards: int = Field(
        16, ge=0, description="Shards found damaged and made again before the job fails instead."
    )

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(None, ge=1, description="Torch threads of this process; unset: torch's default.")
    compile_networks: bool = Field(
        False, description="Compile generator and student with torch.compile for synthesis; needs a C++ compiler."
    )
    allowed_factories: CommaSeparated = Field(
        (), description="Comma-separated package.module prefixes that `arch: package.module:factory` may import."
    )

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "console"

    @field_validator("allowed_factories", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
