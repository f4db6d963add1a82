"""What a job has made, as lists, as files and as a network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.jobs import JobRecord
from shared.shards.manifest import ShardManifest
from synth_service.client.connection import Connection, Request, path_of
from synth_service.client.downloads import download
from synth_service.wire import Consumed, MetricList, MetricRow, Shard, ShardPage

if TYPE_CHECKING:
    from torch import nn

SHARDS_PER_PAGE: Final = 1000


async def list_shards(connection: Connection, job_id: str) -> list[ShardManifest]:
    """Manifests of the shards that were announced so far, without their ids."""
    return [shard.manifest() for shard in await all_shards(connection, job_id)]


async def all_shards(connection: Connection, job_id: str) -> list[Shard]:
    """The shards that were announced so far, all pages of them."""
    shards: list[Shard] = []
    after = None
    while True:
        page = await shard_page(connection, job_id, after)
        shards += page.data
        if not page.has_more:
            return shards
        after = page.data[-1].id


async def shard_page(connection: Connection, job_id: str, after: str | None) -> ShardPage:
    """The shards that were announced after one of them, as many as one answer holds."""
    params = {"limit": str(SHARDS_PER_PAGE), **({"after": after} if after else {})}
    return await connection.ask(
        Request("GET", path_of("jobs", job_id, "shards"), params=params), ShardPage.model_validate
    )


async def report_consumed(connection: Connection, job_id: str, until: str) -> Consumed:
    """Says which shards are used up."""
    path = path_of("jobs", job_id, "consumed")
    return await connection.ask(Request("POST", path, json={"until": until}), Consumed.model_validate)


async def list_metrics(
    connection: Connection,
    job_id: str,
    *,
    after: str | None = None,
    since_step: int | None = None,
    task: str | None = None,
    points: int | None = None,
) -> list[MetricRow]:
    """Measured values, oldest first, all pages of them."""
    wanted = {"after": after, "since_step": since_step, "task": task, "points": points}
    params = {name: str(value) for name, value in wanted.items() if value is not None}
    rows: list[MetricRow] = []
    while True:
        request = Request("GET", path_of("jobs", job_id, "metrics"), params=params)
        page = await connection.ask(request, MetricList.model_validate)
        rows += page.data
        if not page.has_more:
            return rows
        params["after"] = rows[-1].id


async def download_shard(connection: Connection, manifest: ShardManifest, target: Path) -> None:
    """Stores a shard under ``target``, checked against its manifest."""
    request = Request("GET", path_of("jobs", manifest.job, "shards", manifest.name))
    await download(connection, request, target, sha256=manifest.sha256)


async def download_student(connection: Connection, job_id: str, target: Path, format: str | None = None) -> None:
    """Stores the trained student under ``target``."""
    await download(connection, student_request(job_id, format), target)


def student_request(job_id: str, format: str | None = None) -> Request:
    """What asks for the trained student."""
    return Request("GET", path_of("jobs", job_id, "student"), params={"format": format} if format else {})


async def load_student(connection: Connection, job: JobRecord, allowed_factories: Sequence[str]) -> nn.Module:
    """The trained student as a network on the CPU, in evaluation mode; it takes normalized images.

    Raises:
        ValueError: the job trains no student.
        UserError: its network cannot be built here, such as one whose factory is not allowed.
    """
    # Here, since whoever only submits and fetches need not have torch.
    from shared.networks.building import build_network_of
    from shared.networks.weights import load_checkpoint

    spec = job.parsed_spec()
    if spec.student is None:
        raise ValueError(f"{job.id} only makes a dataset (`distillation` is null), so it has no student")
    with tempfile.TemporaryDirectory(prefix="dfkd-student-") as folder:
        path = Path(folder) / "student.safetensors"
        await download_student(connection, job.id, path)
        network = build_network_of(spec, spec.student, tuple(allowed_factories))
        load_checkpoint(network, path, field="student")
    return network.eval()
