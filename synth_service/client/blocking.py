"""The client for scripts: ``with Client() as client: job = client.jobs.create(spec).wait(progress=True)``.

Nothing is decided here. Each method runs the one of the same name of ``AsyncJobs``, ``AsyncModels`` or
``AsyncService``, where it is described, over a transport that blocks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from shared.jobs import Event, JobRecord, State
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec
from synth_service.client.connection import Connection, Retry
from synth_service.client.errors import ClientError, JobNotSucceeded
from synth_service.client.hub_repository import Pushed
from synth_service.client.jobs import LARGEST_PAGE, AsyncJobs
from synth_service.client.notebook import job_html
from synth_service.client.outputs import download_shard, shard_page
from synth_service.client.progress import Display
from synth_service.client.service import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_SECONDS,
    AsyncKeys,
    AsyncModels,
    AsyncService,
    key_of,
    url_of,
)
from synth_service.client.streaming import JobStream
from synth_service.client.transports import BlockingTransport, iterate, run
from synth_service.client.waiting import PATIENCE_SECONDS, Poll
from synth_service.wire import (
    ArchitectureDetail,
    Consumed,
    KeyDetail,
    KeyRequest,
    MetricRow,
    Model,
    ModelDetail,
    NewKey,
    Page,
    Preset,
    Shard,
    ValidatedJob,
    WorkerDetail,
)

if TYPE_CHECKING:
    from torch import nn


class Job(JobRecord):
    """A job as it was when it was asked for, with what can be done with it."""

    _jobs: Jobs = PrivateAttr()

    @classmethod
    def bound(cls, fields: Mapping[str, Any], jobs: Jobs) -> Self:
        """A job of these jobs."""
        job = cls.model_validate(fields)
        job._jobs = jobs
        return job

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._jobs.get(self.id)

    def wait(self, *, progress: bool | Display = False, timeout: float | None = None) -> Job:
        """See ``AsyncJobs.wait``."""
        return self._jobs.wait(self.id, progress=progress, timeout=timeout)

    def cancel(self) -> Job:
        """See ``AsyncJobs.cancel``."""
        return self._jobs.cancel(self.id)

    def retry(self) -> Job:
        """See ``AsyncJobs.retry``."""
        return self._jobs.retry(self.id)

    def delete(self) -> None:
        """See ``AsyncJobs.delete``."""
        self._jobs.delete(self.id)

    def events(self, *, after: str | None = None, follow: bool = True) -> Iterator[Event]:
        """See ``AsyncJobs.events``."""
        return self._jobs.events(self.id, after=after, follow=follow)

    def download_dataset(self, folder: Path | str) -> Sequence[str]:
        """See ``AsyncJobs.download_dataset``."""
        return self._jobs.download_dataset(self.id, folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        student: bool = False,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
    ) -> Pushed:
        """See ``AsyncJobs.push_to_hub``."""
        return self._jobs.push_to_hub(
            self.id, repository, student=student, private=private, revision=revision, message=message
        )

    def student(self, *, allowed_factories: Sequence[str] = ()) -> nn.Module:
        """See ``AsyncJobs.student``."""
        return self._jobs.student(self.id, allowed_factories=allowed_factories)

    def stream(self, *, follow: bool = True) -> JobStream:
        """See ``Jobs.stream``."""
        return self._jobs.stream(self.id, follow=follow)

    def _repr_html_(self) -> str:
        """The job in a notebook, as it was when it was asked for, with the newest picture of its images."""
        picture = None
        with suppress(ClientError, OSError), tempfile.TemporaryDirectory(prefix="dfkd-picture-") as folder:
            path = Path(folder) / "grid.png"
            self._jobs.download_grid(self.id, path)
            picture = path.read_bytes()
        return job_html(self, page=f"{self._jobs.url}/ui/jobs/{self.id}", picture=picture)

    def ensure_succeeded(self) -> Self:
        """The job itself. Raises JobNotSucceeded unless it has succeeded."""
        if self.state is not State.SUCCEEDED:
            raise JobNotSucceeded(self)
        return self


class Jobs:
    """The jobs of a service; see ``AsyncJobs``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.url = connection.url
        self._calls: AsyncJobs[Job] = AsyncJobs(connection, lambda fields: Job.bound(fields, self))

    def create(self, spec: Mapping[str, Any] | JobSpec, *, idempotency_key: str | None = None) -> Job:
        """See ``AsyncJobs.create``."""
        return run(self._calls.create(spec, idempotency_key=idempotency_key))

    def validate(self, spec: Mapping[str, Any] | JobSpec) -> ValidatedJob:
        """See ``AsyncJobs.validate``."""
        return run(self._calls.validate(spec))

    def get(self, job_id: str) -> Job:
        """See ``AsyncJobs.get``."""
        return run(self._calls.get(job_id))

    def poll(self, job_id: str) -> Poll[Job]:
        """See ``AsyncJobs.poll``."""
        return run(self._calls.poll(job_id))

    def list(
        self, *, status: str | None = None, name: str | None = None, limit: int | None = None, after: str | None = None
    ) -> Page[Job]:
        """See ``AsyncJobs.list``."""
        return run(self._calls.list(status=status, name=name, limit=limit, after=after))

    def iterate(
        self, *, status: str | None = None, name: str | None = None, page_size: int = LARGEST_PAGE
    ) -> Iterator[Job]:
        """See ``AsyncJobs.iterate``."""
        return iterate(self._calls.iterate(status=status, name=name, page_size=page_size))

    def cancel(self, job_id: str) -> Job:
        """See ``AsyncJobs.cancel``."""
        return run(self._calls.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """See ``AsyncJobs.retry``."""
        return run(self._calls.retry(job_id))

    def delete(self, job_id: str) -> None:
        """See ``AsyncJobs.delete``."""
        run(self._calls.delete(job_id))

    def wait(
        self,
        job_id: str,
        *,
        progress: bool | Display = False,
        timeout: float | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Job:
        """See ``AsyncJobs.wait``."""
        return run(self._calls.wait(job_id, progress=progress, timeout=timeout, patience_seconds=patience_seconds))

    def events(
        self,
        job_id: str,
        *,
        after: str | None = None,
        follow: bool = True,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Iterator[Event]:
        """See ``AsyncJobs.events``."""
        return iterate(self._calls.events(job_id, after=after, follow=follow, patience_seconds=patience_seconds))

    def metrics(
        self,
        job_id: str,
        *,
        after: str | None = None,
        since_step: int | None = None,
        task: str | None = None,
        points: int | None = None,
    ) -> Sequence[MetricRow]:
        """See ``AsyncJobs.metrics``."""
        return run(self._calls.metrics(job_id, after=after, since_step=since_step, task=task, points=points))

    def shards(self, job_id: str) -> Sequence[Shard]:
        """See ``AsyncJobs.shards``."""
        return run(self._calls.shards(job_id))

    def report_consumed(self, job_id: str, until: str) -> Consumed:
        """See ``AsyncJobs.report_consumed``."""
        return run(self._calls.report_consumed(job_id, until))

    def download_shard(self, manifest: ShardManifest, target: Path | str) -> None:
        """See ``AsyncJobs.download_shard``."""
        run(self._calls.download_shard(manifest, target))

    def download_student(self, job_id: str, target: Path | str, *, format: str | None = None) -> None:
        """See ``AsyncJobs.download_student``."""
        run(self._calls.download_student(job_id, target, format=format))

    def download_grid(self, job_id: str, target: Path | str) -> None:
        """See ``AsyncJobs.download_grid``."""
        run(self._calls.download_grid(job_id, target))

    def download_dataset(
        self, job_id: str, folder: Path | str, *, say: Callable[[str], None] | None = None
    ) -> Sequence[str]:
        """See ``AsyncJobs.download_dataset``."""
        return run(self._calls.download_dataset(job_id, folder, say=say))

    def push_to_hub(
        self,
        job_id: str,
        repository: str,
        *,
        student: bool = False,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Pushed:
        """See ``AsyncJobs.push_to_hub``."""
        return run(
            self._calls.push_to_hub(
                job_id, repository, student=student, private=private, revision=revision, message=message, say=say
            )
        )

    def student(self, job_id: str, *, allowed_factories: Sequence[str] = ()) -> nn.Module:
        """See ``AsyncJobs.student``."""
        return run(self._calls.student(job_id, allowed_factories=allowed_factories))

    def stream(self, job_id: str, *, follow: bool = True) -> JobStream:
        """The images of a job, also while it makes more: an iterator of ``(image, target)``, with ``batches(size)``.

        Args:
            job_id: of the job.
            follow: wait for more until the job has ended; else stop at what there is.
        """

        def next_shards(after: str | None) -> list[Shard]:
            return run(shard_page(self._connection, job_id, after)).data

        def download(shard: Shard, target: Path) -> None:
            run(download_shard(self._connection, shard, target))

        return JobStream(
            lambda: self.get(job_id),
            next_shards,
            download,
            lambda seconds: run(self._connection.sleep(seconds)),
            lambda until: self.report_consumed(job_id, until),
            follow=follow,
        )


class Models:
    """Checkpoints that clients upload; see ``AsyncModels``."""

    def __init__(self, connection: Connection) -> None:
        self._calls = AsyncModels(connection)

    def upload(self, path: Path | str, *, name: str | None = None) -> Model:
        """See ``AsyncModels.upload``."""
        return run(self._calls.upload(path, name=name))

    def get(self, model_id: str) -> ModelDetail:
        """See ``AsyncModels.get``."""
        return run(self._calls.get(model_id))

    def list(self) -> Sequence[Model]:
        """See ``AsyncModels.list``."""
        return run(self._calls.list())

    def delete(self, model_id: str) -> None:
        """See ``AsyncModels.delete``."""
        run(self._calls.delete(model_id))


class Keys:
    """API keys of the service; see ``AsyncKeys``."""

    def __init__(self, connection: Connection) -> None:
        self._calls = AsyncKeys(connection)

    def list(self) -> Sequence[KeyDetail]:
        """See ``AsyncKeys.list``."""
        return run(self._calls.list())

    def make(self, wanted: KeyRequest) -> NewKey:
        """See ``AsyncKeys.make``."""
        return run(self._calls.make(wanted))

    def revoke(self, fingerprint: str) -> None:
        """See ``AsyncKeys.revoke``."""
        run(self._calls.revoke(fingerprint))


class Client:
    """A service; a context manager.

    Args:
        url: address of the API; else that of ``DFKD_URL``, else this machine's.
        api_key: else that of ``DFKD_API_KEY``.
        timeout_seconds: longest silence before a request counts as unanswered.
        retries: tries after the first, where trying again can do no harm.
        on_retry: is told of each.
        sleep: waits between tries and polls; what it raises ends the call.

    Raises:
        ValueError: the address is no http:// or https:// URL.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retries: int = DEFAULT_RETRIES,
        on_retry: Callable[[Retry], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        connection = Connection(
            BlockingTransport(url_of(url), timeout_seconds, sleep),
            url_of(url),
            api_key=key_of(api_key),
            timeout_seconds=timeout_seconds,
            retries=retries,
            on_retry=on_retry,
        )
        self._calls = AsyncService(connection)
        self.url = connection.url
        self.jobs = Jobs(connection)
        self.models = Models(connection)
        self.keys = Keys(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        run(self._calls.close())

    def workers(self) -> Sequence[WorkerDetail]:
        """See ``AsyncService.workers``."""
        return run(self._calls.workers())

    def architectures(self) -> Sequence[ArchitectureDetail]:
        """See ``AsyncService.architectures``."""
        return run(self._calls.architectures())

    def presets(self) -> Sequence[Preset]:
        """See ``AsyncService.presets``."""
        return run(self._calls.presets())

    def check_ready(self) -> None:
        """See ``AsyncService.check_ready``."""
        run(self._calls.check_ready())
