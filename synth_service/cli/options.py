"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synth_service.client import Client, ClientError
from synth_service.client.connection import DEFAULT_URL

COMPLETION_SECONDS = 1.0
"""A shell that waits for longer seems to hang."""


def complete_job_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest jobs, with their names and states; nothing where the service does not say at once."""
    given = context.params
    try:
        with Client(given.get("url"), given.get("api_key"), timeout_seconds=COMPLETION_SECONDS, retries=0) as client:
            jobs = client.jobs.list(limit=50).data
    except (ClientError, ValueError):
        return []
    return [(job.id, f"{job.name} {job.state}".strip()) for job in jobs if job.id.startswith(incomplete)]


Url = Annotated[str, typer.Option("--url", envvar="DFKD_URL", help=f"Address of the service (default: {DEFAULT_URL}).")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="DFKD_API_KEY",
        help="Key of the service. Better in the variable than here, where others on this machine can see it.",
    ),
]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="The job: its id, the beginning of it, its name, or `last`.",
        autocompletion=complete_job_ids,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field; may be repeated.")
]
JobFile = Annotated[str, typer.Argument(metavar="FILE", help="The job, YAML or JSON; - reads stdin.")]
Storage = Annotated[str | None, typer.Option(help="Folder or s3:// address for everything that is made.")]

CheckpointFile = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Weights of the teacher (safetensors, or a torch file), a folder of transformers or timm, or a hub id.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="Network of the weights: resnet18, torchvision:NAME, timm:NAME, transformers:TYPE, or module:factory."
    ),
]
NumClasses = Annotated[int | None, typer.Option(min=2, help="Classes that it tells apart.")]
Channels = Annotated[int | None, typer.Option(min=1, max=64, help="Color channels of its images.")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Size of its images: 224, or 28x24.")]
Normalization = Annotated[
    str | None,
    typer.Option(metavar="MEAN/STD", help="As in 0.49,0.48,0.45/0.25,0.24,0.26; or a data set such as cifar10."),
]
StudentArch = Annotated[str | None, typer.Option(help="Network to train.")]
JobName = Annotated[str | None, typer.Option(help="Name of the job (default: that of the file).")]
