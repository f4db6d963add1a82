"""A client of the HTTP API, for scripts (``Client``) and for event loops (``AsyncClient``)::

    from synth_service.client import Client

    with Client("http://127.0.0.1:8000") as client:
        job = client.jobs.create({"teacher": {...}, "student": {"arch": "wrn16_1"}})
        job.wait(progress=True).ensure_succeeded()
        network = job.student()

``api_key`` is for services that ask for one; address and key also come from ``DFKD_URL`` and ``DFKD_API_KEY``.
Nothing here imports torch but ``student``.
"""

from synth_service.client.asynchronous import AsyncClient, AsyncJob
from synth_service.client.blocking import Client, Job
from synth_service.client.connection import DEFAULT_URL, Retry
from synth_service.client.errors import (
    ApiError,
    ClientError,
    DamagedDownload,
    DamagedUpload,
    HubError,
    JobNotSucceeded,
    ServerUnreachable,
    UnexpectedAnswer,
)
from synth_service.client.hub_repository import Pushed
from synth_service.client.streaming import JobStream
from synth_service.client.waiting import Poll
from synth_service.wire import (
    ArchitectureDetail,
    Consumed,
    FieldError,
    MetricRow,
    Model,
    ModelDetail,
    Page,
    Preset,
    Shard,
    ValidatedJob,
    WorkerDetail,
)

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "ArchitectureDetail",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ClientError",
    "Consumed",
    "DamagedDownload",
    "DamagedUpload",
    "FieldError",
    "HubError",
    "Job",
    "JobNotSucceeded",
    "JobStream",
    "MetricRow",
    "Model",
    "ModelDetail",
    "Page",
    "Poll",
    "Preset",
    "Pushed",
    "Retry",
    "ServerUnreachable",
    "Shard",
    "UnexpectedAnswer",
    "ValidatedJob",
    "WorkerDetail",
]
