"""Everything a deployment sets through the environment, in one place.

Variables carry the prefix ``DFKD_``; ``REDIS_URL`` is also read under its customary bare name. A job
never changes a setting and a setting never changes what a job's spec means.
"""

import base64
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.api_keys import ApiKey, parse_api_keys
from shared.specs.webhooks import is_receiver

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Settings of one process, read from the environment when constructed."""

    model_config = SettingsConfigDict(
        env_prefix="DFKD_",
        env_file=None,
        # Compose's `${X:-}` and a Kubernetes value of "" set a variable to nothing where they mean not to set it.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("DFKD_REDIS_URL", "REDIS_URL", "redis_url"),
        repr=False,  # it may hold a password
        description="Redis or Valkey server: redis://, rediss:// or redis+sentinel://host:port,host:port/service. "
        "Unset: `dfkd up` starts one of its own.",
    )
    storage: str = Field("dfkd-data", description="Storage root: a folder or an s3:// address.")

    state_folder: Path | None = Field(
        None,
        description="Where `dfkd up` keeps the data of the server that it starts. Unset: in NAME.private beside the "
        "storage, since whatever lies in the storage can be named by jobs.",
    )

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 picks a free one.")
    published_address: str | None = Field(
        None, description="Of the machine, where the port of the API's container is published; counts instead of host."
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (),
        description="Keys that the API accepts, separated by commas: name:sha256:HEX (`dfkd key NAME` makes one) or "
        "name:KEY. None: everybody who reaches the API may do everything.",
    )
    allow_unauthenticated: bool = Field(
        False, description="Lets the API listen beyond loopback although there are no API keys."
    )
    own_jobs_only: bool = Field(False, description="A caller sees and changes only the jobs that its API key started.")
    public_metrics: bool = Field(False, description="Answers GET /metrics without an API key, for a private network.")
    allowed_hosts: CommaSeparated = Field(
        (),
        description="Comma-separated host names under which clients reach the API, or *. localhost and IP addresses "
        "always work. Unset: any name where there are API keys, no other where there are none.",
    )
    session_hours: float = Field(168.0, gt=0, le=8760, description="A sign-in to the dashboard lasts this long.")
    max_wrong_keys: int = Field(
        20, ge=1, description="Wrong API keys that one address may send at once; after that one a second, then 429."
    )
    max_requests_per_second: float = Field(
        300.0,
        ge=0,
        description="Requests of one API key, or of one address without a key, above which the API answers 429. "
        "Twice as many may come at once. Counted by each API process. 0: no limit.",
    )
    max_keyless_requests_per_second: float = Field(
        50.0,
        ge=0,
        description="Requests without a key, from one address, above which the API answers 429 where there are keys. "
        "0: no limit.",
    )
    trusted_proxies: CommaSeparated = Field(
        (),
        description="Comma-separated addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed, or *. Unset: nobody's.",
    )
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest accepted request body, uploads excepted.")
    max_upload_bytes: int = Field(4 * 1024**3, ge=1_000, description="Largest accepted upload of a checkpoint.")
    max_queued_jobs_per_key: int | None = Field(
        None, ge=0, description="Jobs that may wait for a worker at a time, for the owner of one API key."
    )
    max_running_jobs_per_key: int | None = Field(
        None, ge=0, description="Running jobs of the owner of one API key at which further ones are refused."
    )
    max_bytes_per_key: int | None = Field(
        None, ge=0, description="Bytes of uploaded checkpoints and datasets that the owner of one API key may have."
    )
    max_queued_jobs: int = Field(10_000, ge=1, description="POST /jobs answers 429 above this many unfinished jobs.")
    webhook_hosts: CommaSeparated = Field(
        (),
        description="Comma-separated hosts that the API may tell of a job's end, each HOST for the usual port or "
        "HOST:PORT. Unset: jobs may name no webhook.",
    )
    webhook_secret: str | None = Field(
        None,
        repr=False,
        description="What webhooks are signed with and receivers check them with: whsec_ and 24 to 64 bytes in base64 "
        "(Standard Webhooks). Needed as soon as there are webhook_hosts.",
    )

    lease_seconds: float = Field(15.0, gt=0, le=3600, description="A worker silent for longer loses its claim.")
    max_attempts: int = Field(
        3, ge=1, le=100, description="Attempts in a row without progress after which a job fails."
    )
    cache_folder: Path | None = Field(
        None, description="Local folder in which distillers keep copies of shards from object storage. Unset: none."
    )
    cache_bytes: int = Field(10_000_000_000, ge=0, description="Most that the cache folder may hold.")
    pool_memory_bytes: int = Field(
        4_000_000_000, ge=0, description="Most memory that a distiller's pool of images takes; the rest lies on disk."
    )
    pool_disk_bytes: int = Field(
        100_000_000_000, ge=0, description="Most disk space that a distiller's pool of images takes. 0: none."
    )
    pool_folder: Path | None = Field(
        None, description="Local folder for that; best on a fast disk. Unset: the system's temporary folder."
    )
    storage_refusal_seconds: float = Field(
        3600.0,
        ge=0,
        description="For how long on end the object store may refuse a worker's credentials before the job fails with "
        "storage_refused. 0: the job waits for ever.",
    )
    max_damaged_shards: int = Field(
        16,
        ge=0,
        description="Shards found damaged and made again before the job fails instead; a hundredth of all in any case.",
    )

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    max_memory_bytes: int | None = Field(
        None,
        ge=500_000_000,
        description="Data that a worker on the CPU may hold; a job that asks for more fails with the field to change. "
        "Unset: nine tenths of the machine's memory, or of the container's.",
    )
    threads: int | None = Field(None, ge=1, description="Torch threads of this process; unset: torch's default.")
    distiller_processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes of one distiller, which share every batch: one for each GPU of a machine.",
    )
    global_batch_norm: bool = Field(
        True,
        description="BatchNorm layers of a student see the whole batch of all processes of a distiller, so that their "
        "number does not change the student. Off: each sees its part, which saves two exchanges a layer and step.",
    )
    compile_networks: bool = Field(
        False, description="Compile generator and student with torch.compile for synthesis; needs a C++ compiler."
    )
    allowed_factories: CommaSeparated = Field(
        (), description="Comma-separated package.module prefixes that `arch: package.module:factory` may import."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field("console", description="Log lines for machines or for people.")

    @field_validator("allowed_factories", "allowed_hosts", "trusted_proxies", "webhook_hosts", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash_keys(cls, value: object) -> object:
        return parse_api_keys(value) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if re.match(r"rediss?\+sentinel://", value or ""):
            return value  # several hosts; looked at where they are used
        # Here, since the messages of urllib and redis-py repeat parts of the URL, such as half of a password.
        try:
            _ = urlsplit(value or "").port
        except ValueError:
            raise ValueError(
                "no usable port; write redis://[user:password@]host:port/database and percent-encode /, ?, # and @ "
                "in the password"
            ) from None
        return value

    @field_validator("webhook_hosts")
    @classmethod
    def _check_webhook_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(each.lower() for each in value)
        if unusable := [each for each in hosts if not is_receiver(each)]:
            raise ValueError(
                f"{unusable[0]!r} is no host; write example.org or example.org:8443, without https:// and path"
            )
        return hosts

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: str | None) -> str | None:
        if value is not None and not 24 <= len(_decoded(value)) <= 64:
            raise ValueError(f"is no whsec_ with 24 to 64 bytes in base64; {_HOW_TO_SIGN}")
        return value

    @field_validator("storage")
    @classmethod
    def _keep_secrets_out_of_the_storage(cls, value: str) -> str:
        # Messages name the storage root.
        if re.match(r"[A-Za-z0-9+.-]+://[^/]*@", value):
            raise ValueError(
                "credentials do not belong in the address; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return value


_HOW_TO_SIGN: Final = "write whsec_ and behind it what `openssl rand -base64 32` prints"


def _decoded(secret: str) -> bytes:
    """The key in a secret of Standard Webhooks; empty if it is none."""
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True) if secret.startswith("whsec_") else b""
    except ValueError:
        return b""


def webhook_key(settings: Settings) -> bytes | None:
    """What webhooks are signed with; None where there are none.

    Asked by the API alone: workers may have the hosts among their settings, and have no use for the secret.

    Raises:
        ValueError: there are hosts and no secret, with what to do about it.
    """
    if not settings.webhook_hosts:
        return None
    if settings.webhook_secret is None:
        raise ValueError(
            "DFKD_WEBHOOK_HOSTS is set and DFKD_WEBHOOK_SECRET is not, without which no receiver could tell a webhook "
            f"from a forgery: {_HOW_TO_SIGN}, or unset DFKD_WEBHOOK_HOSTS"
        )
    return _decoded(settings.webhook_secret)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on this address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings, host: str | None = None) -> None:
    """Refuses to let the API listen where others reach it while it asks nobody who they are.

    Args:
        settings: of the deployment.
        host: where it will listen, if not where the settings say.

    Raises:
        ValueError: with what to do about it.
    """
    host = settings.published_address or settings.host if host is None else host
    if not (settings.api_keys or settings.allow_unauthenticated or is_loopback(host)):
        raise ValueError(
            f"refusing to listen on {host or 'every address'} without an API key: whoever reaches it could use it. Set "
            "DFKD_API_KEYS (`dfkd key NAME` makes a key), listen on 127.0.0.1, or set DFKD_ALLOW_UNAUTHENTICATED=true"
        )
