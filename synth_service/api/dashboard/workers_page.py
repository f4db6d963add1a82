"""The page of the workers: what each one runs on, what it does, and when it was last heard of."""

import re
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from shared.broker import Broker
from shared.jobs import Role
from synth_service.api.dashboard.rendering import render, render_text
from synth_service.api.dependencies import JOB_ID_PATTERN, BrokerInUse
from synth_service.api.files import matches
from synth_service.wire import WorkerDetail

JOB_ID = re.compile(JOB_ID_PATTERN)

STALE_SECONDS = 10.0
"""Workers are heard of every two seconds or so, busy or idle; after a minute they are forgotten."""

router = APIRouter()


@dataclass(frozen=True)
class WorkerRow:
    """A worker as a line of the list."""

    name: str
    role: str
    device: str
    device_name: str
    job: str | None
    heard_at: float | None
    is_stale: bool
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    process_bytes: float | None
    cpu_percent: float | None
    """Of one core; several threads take more than 100."""
    gpu_percent: float | None

    @classmethod
    def of(cls, fields: dict[str, str], now: float) -> "WorkerRow":
        """The line of what a worker published of itself. Of an older or newer version's, what is understood."""
        worker = WorkerDetail.model_validate(fields)
        total, available = worker.memory_total_bytes, worker.memory_available_bytes
        return cls(
            name=worker.name,
            role=worker.role or "",
            device=worker.device or "",
            device_name=worker.device_name or "",
            job=worker.job or None,
            heard_at=worker.at,
            is_stale=worker.at is not None and now - worker.at > STALE_SECONDS,
            memory_used_bytes=total - available if total is not None and available is not None else None,
            memory_total_bytes=total,
            process_bytes=worker.process_memory_bytes,
            cpu_percent=worker.cpu_percent,
            gpu_percent=worker.gpu_percent,
        )


@router.get("/ui/workers")
def show_workers(request: Request, broker: BrokerInUse) -> HTMLResponse:
    """The page."""
    return render(request, "workers.html", **_listed(broker))


@router.get("/ui/workers/list")
def show_worker_list(request: Request, broker: BrokerInUse) -> Response:
    """The list alone: 304 while the browser has it as it is."""
    content = render_text(request, "_workers.html", **_listed(broker))
    headers = {"ETag": f'W/"{sha256(content.encode()).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    if matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(content, headers=headers)


def _listed(broker: Broker) -> dict[str, Any]:
    """What the template of the list needs: workers by role, and how many tasks each role has before it."""
    now = time.time()
    rows = [WorkerRow.of(fields, now) for fields in broker.workers.all()]
    depths = broker.jobs.queue_depths()
    return {
        "rows": sorted(rows, key=lambda row: (row.role != Role.SYNTHESIS, row.role, row.name)),
        "job_ids": {row.job for row in rows if row.job and JOB_ID.match(row.job)},
        "roles": [(role, depths[role], any(row.role == role and not row.is_stale for row in rows)) for role in Role],
    }
