"""The client for event loops: ``async with AsyncClient() as client: job = await client.jobs.create(spec)``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from shared.jobs import Event, JobRecord, State
from synth_service.client.connection import Connection, Retry
from synth_service.client.errors import JobNotSucceeded
from synth_service.client.hub_repository import Pushed
from synth_service.client.jobs import AsyncJobs
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
from synth_service.client.transports import AsyncTransport

if TYPE_CHECKING:
    from torch import nn


class AsyncJob(JobRecord):
    """A job as it was when it was asked for, with what can be done with it."""

    _jobs: AsyncJobs[AsyncJob] = PrivateAttr()

    @classmethod
    def bound(cls, fields: Mapping[str, Any], jobs: AsyncJobs[AsyncJob]) -> Self:
        """A job of these jobs."""
        job = cls.model_validate(fields)
        job._jobs = jobs
        return job

    async def refresh(self) -> AsyncJob:
        """The job as it is now."""
        return await self._jobs.get(self.id)

    async def wait(self, *, progress: bool | Display = False, timeout: float | None = None) -> AsyncJob:
        """See ``AsyncJobs.wait``."""
        return await self._jobs.wait(self.id, progress=progress, timeout=timeout)

    async def cancel(self) -> AsyncJob:
        """See ``AsyncJobs.cancel``."""
        return await self._jobs.cancel(self.id)

    async def retry(self) -> AsyncJob:
        """See ``AsyncJobs.retry``."""
        return await self._jobs.retry(self.id)

    async def delete(self) -> None:
        """See ``AsyncJobs.delete``."""
        await self._jobs.delete(self.id)

    def events(self, *, after: str | None = None, follow: bool = True) -> AsyncGenerator[Event, None]:
        """See ``AsyncJobs.events``."""
        return self._jobs.events(self.id, after=after, follow=follow)

    async def download_dataset(self, folder: Path | str) -> Sequence[str]:
        """See ``AsyncJobs.download_dataset``."""
        return await self._jobs.download_dataset(self.id, folder)

    async def push_to_hub(
        self,
        repository: str,
        *,
        student: bool = False,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
    ) -> Pushed:
        """See ``AsyncJobs.push_to_hub``."""
        return await self._jobs.push_to_hub(
            self.id, repository, student=student, private=private, revision=revision, message=message
        )

    async def student(self, *, allowed_factories: Sequence[str] = ()) -> nn.Module:
        """See ``AsyncJobs.student``."""
        return await self._jobs.student(self.id, allowed_factories=allowed_factories)

    def ensure_succeeded(self) -> Self:
        """The job itself. Raises JobNotSucceeded unless it has succeeded."""
        if self.state is not State.SUCCEEDED:
            raise JobNotSucceeded(self)
        return self


class AsyncClient(AsyncService):
    """A service, as seen from an event loop; an asynchronous context manager.

    Args:
        url: address of the API; else that of ``DFKD_URL``, else this machine's.
        api_key: else that of ``DFKD_API_KEY``.
        timeout_seconds: longest silence before a request counts as unanswered.
        retries: tries after the first, where trying again can do no harm.
        on_retry: is told of each.

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
    ) -> None:
        connection = Connection(
            AsyncTransport(url_of(url), timeout_seconds),
            url_of(url),
            api_key=key_of(api_key),
            timeout_seconds=timeout_seconds,
            retries=retries,
            on_retry=on_retry,
        )
        super().__init__(connection)
        self.url = connection.url
        self.jobs: AsyncJobs[AsyncJob] = AsyncJobs(connection, lambda fields: AsyncJob.bound(fields, self.jobs))
        self.models = AsyncModels(connection)
        self.keys = AsyncKeys(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
