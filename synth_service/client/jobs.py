"""Jobs: everything that a client does with them, written once.

``AsyncJobs`` is what ``AsyncClient.jobs`` is, and what the blocking client runs over its own transport.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic

import httpx

from shared.jobs import Event, State
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec
from synth_service.client import outputs
from synth_service.client.connection import LONGEST_RETRY_AFTER_SECONDS, Connection, Request, path_of, retry_after
from synth_service.client.downloads import download
from synth_service.client.errors import ApiError
from synth_service.client.events import follow_events, list_events
from synth_service.client.hub_repository import HubRepository, Pushed
from synth_service.client.progress import Display, NoDisplay, display_for
from synth_service.client.waiting import PATIENCE_SECONDS, J, Poll, wait_for_end
from synth_service.wire import Consumed, MetricRow, Page, Shard, ValidatedJob

if TYPE_CHECKING:
    from torch import nn

LARGEST_PAGE: Final = 100


class AsyncJobs(Generic[J]):
    """The jobs of a service. Every method raises ``ServerUnreachable`` and ``ApiError`` as ``Connection.send`` does.

    Args:
        connection: to the service.
        bind: makes a job of the fields of one.
    """

    def __init__(self, connection: Connection, bind: Callable[[Mapping[str, Any]], J]) -> None:
        self._connection = connection
        self._bind = bind
        self._seen: dict[str, tuple[str, J]] = {}

    async def create(self, spec: Mapping[str, Any] | JobSpec, *, idempotency_key: str | None = None) -> J:
        """Starts a job; one job, however often the answer is lost on the way.

        Args:
            spec: the job's fields, as in a job file.
            idempotency_key: makes later calls with the same key and spec give the same job, for a day.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return await self._ask("POST", "/jobs", json=_fields(spec), headers=headers)

    async def validate(self, spec: Mapping[str, Any] | JobSpec) -> ValidatedJob:
        """What ``create`` would start and what that comes to; refuses what it would refuse."""
        request = Request("POST", "/jobs:validate", json=_fields(spec))
        return await self._connection.ask(request, ValidatedJob.model_validate)

    async def get(self, job_id: str) -> J:
        """One job."""
        return await self._ask("GET", path_of("jobs", job_id))

    async def poll(self, job_id: str) -> Poll[J]:
        """One job, asked for again and again: an unchanged one is not sent twice."""
        tag, known = self._seen.get(job_id, ("", None))
        headers = {"If-None-Match": tag} if known is not None else {}
        request = Request("GET", path_of("jobs", job_id), headers=headers)
        answer = await self._connection.send(request)
        if answer.status_code == httpx.codes.NOT_MODIFIED and known is not None:
            job = known
        else:
            job = self._connection.parsed(request, answer, self._bind)
            self._seen.pop(job_id, None)
            if (tag := answer.headers.get("ETag", "")) and not job.state.is_final:
                self._seen[job_id] = (tag, job)
        pause = retry_after(answer)
        return Poll(job, None if pause is None else min(pause, LONGEST_RETRY_AFTER_SECONDS))

    async def list(
        self, *, status: str | None = None, name: str | None = None, limit: int | None = None, after: str | None = None
    ) -> Page[J]:
        """A page of jobs, newest first.

        Args:
            status: only jobs in this state.
            name: only jobs whose name contains this.
            limit: most jobs of the page, up to 100.
            after: id of the last job of the page before.
        """
        wanted = {"status": status, "name": name, "limit": limit, "after": after}
        params = {field: str(value) for field, value in wanted.items() if value is not None}
        page = await self._connection.ask(Request("GET", "/jobs", params=params), Page[dict[str, Any]].model_validate)
        return Page(data=[self._bind(each) for each in page.data], has_more=page.has_more)

    async def iterate(
        self, *, status: str | None = None, name: str | None = None, page_size: int = LARGEST_PAGE
    ) -> AsyncGenerator[J, None]:
        """All jobs, newest first, asked for page by page."""
        after = None
        while True:
            page = await self.list(status=status, name=name, limit=page_size, after=after)
            for job in page.data:
                yield job
            if not page.has_more:
                return
            after = page.data[-1].id

    async def cancel(self, job_id: str) -> J:
        """Asks a job to stop; what it has made stays."""
        try:
            return await self._ask("POST", path_of("jobs", job_id, "cancel"))
        except ApiError as error:
            if error.code == "job_finished" and error.is_repeated:
                job = await self.get(job_id)
                if job.state is State.CANCELLED:  # by the first try, whose answer was lost
                    return job
            raise

    async def retry(self, job_id: str) -> J:
        """Resumes a job that failed or was cancelled from its last checkpoints."""
        try:
            return await self._ask("POST", path_of("jobs", job_id, "retry"))
        except ApiError as error:
            if error.code == "job_unfinished" and error.is_repeated:
                return await self.get(job_id)
            raise

    async def delete(self, job_id: str) -> None:
        """Removes a finished job and everything it made."""
        try:
            await self._connection.send(Request("DELETE", path_of("jobs", job_id)))
        except ApiError as error:
            if not (error.status == httpx.codes.NOT_FOUND and error.is_repeated):
                raise

    async def wait(
        self,
        job_id: str,
        *,
        progress: bool | Display = False,
        timeout: float | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> J:
        """Waits until a job has ended, however it ends, and returns it.

        Args:
            job_id: of the job.
            progress: show it: bars on a terminal or in a notebook, lines elsewhere, or a display of your own.
            timeout: seconds after which TimeoutError is raised; the job goes on.
            patience_seconds: how long the service may be away.
        """
        display = (display_for() if progress else NoDisplay()) if isinstance(progress, bool) else progress
        return await wait_for_end(
            lambda: self.poll(job_id),
            self._connection.sleep,
            display,
            timeout_seconds=timeout,
            patience_seconds=patience_seconds,
        )

    def events(
        self,
        job_id: str,
        *,
        after: str | None = None,
        follow: bool = True,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[Event, None]:
        """What happens to a job, in order and each event once, over any number of cut connections.

        Args:
            job_id: of the job.
            after: id of an event; only later ones come.
            follow: go on until the job has ended; else stop at what has happened so far.
            patience_seconds: how long the service may be away.
        """
        if follow:
            return follow_events(self._connection, job_id, after, patience_seconds)
        return list_events(self._connection, job_id, after)

    async def metrics(
        self,
        job_id: str,
        *,
        after: str | None = None,
        since_step: int | None = None,
        task: str | None = None,
        points: int | None = None,
    ) -> Sequence[MetricRow]:
        """Measured values, oldest first.

        Args:
            job_id: of the job.
            after: id of a row; only later ones.
            since_step: only of this step and later.
            task: only of this task, such as ``synthesis:0``.
            points: at most about so many of each task and series, chosen by the service for a chart.
        """
        return await outputs.list_metrics(
            self._connection, job_id, after=after, since_step=since_step, task=task, points=points
        )

    async def shards(self, job_id: str) -> Sequence[Shard]:
        """Manifests of the shards that were announced so far, with their ids."""
        return await outputs.all_shards(self._connection, job_id)

    async def report_consumed(self, job_id: str, until: str) -> Consumed:
        """Lets the synthesis of a job with ``distillation: external`` go on. (``Job.stream`` does it by itself.)

        Args:
            job_id: of the job.
            until: id of a shard that is used up, like all before it. One before what was said already changes nothing.
        """
        return await outputs.report_consumed(self._connection, job_id, until)

    async def download_shard(self, manifest: ShardManifest, target: Path | str) -> None:
        """Stores a shard. Raises DamagedDownload unless it is what its manifest says."""
        await outputs.download_shard(self._connection, manifest, Path(target))

    async def download_student(self, job_id: str, target: Path | str, *, format: str | None = None) -> None:
        """Stores the trained student.

        Args:
            job_id: of the job.
            target: path of the file.
            format: ``safetensors`` unless given; others as the service offers them.
        """
        await outputs.download_student(self._connection, job_id, Path(target), format)

    async def download_grid(self, job_id: str, target: Path | str) -> None:
        """Stores the picture grid (PNG)."""
        await download(self._connection, Request("GET", path_of("jobs", job_id, "grid.png")), Path(target))

    async def download_dataset(
        self, job_id: str, folder: Path | str, *, say: Callable[[str], None] | None = None
    ) -> Sequence[str]:
        """Stores everything that a job has made so far; shards that are there and whole are not sent again.

        Args:
            job_id: of the job.
            folder: is made if it is missing.
            say: is told how it goes, where that takes long.

        Returns:
            Names of the files, relative to the folder.

        Raises:
            DamagedDownload: a shard is not what its manifest says.
            OSError: a file cannot be written.
        """
        from synth_service.client.datasets import download_dataset  # brings storage and dataset card along

        return await download_dataset(self._connection, job_id, Path(folder), say)

    async def push_to_hub(
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
        """Pushes what a job has made to the Hugging Face hub, in one commit. Needs the extra ``hub``.

        Token and endpoint are those of huggingface_hub: ``HF_TOKEN`` or its login, and ``HF_ENDPOINT``. The
        repository is made if it is missing; what an earlier push brought is replaced, other files stay.

        Args:
            job_id: of the job; its dataset is complete, or its student trained.
            repository: OWNER/NAME.
            student: push the student to a model repository; else the dataset to a dataset repository.
            private: make a repository that only its owner sees.
            revision: branch to push to, made if it is missing; the main one unless given.
            message: of the commit.
            say: is told how it goes.

        Raises:
            MissingExtra: huggingface_hub is not installed.
            HubError: there is nothing to push, or the hub does not take it; the repository's files are as they were.
            DamagedDownload: a file is not what the service says it is.
            OSError: a temporary file cannot be written.
        """
        from synth_service.client import hub  # brings the names of files along

        target = HubRepository(repository, "model" if student else "dataset", revision)
        job = await self.get(job_id)
        (hub.check_has_student if student else hub.check_has_dataset)(job)
        await self._connection.run_blocking(lambda: target.prepare(private=private))
        push = hub.push_student if student else hub.push_dataset
        message = message or f"Push the {'student' if student else 'dataset'} of {job.id}"
        return await push(self._connection, job, target, message, say or (lambda _: None))

    async def student(self, job_id: str, *, allowed_factories: Sequence[str] = ()) -> nn.Module:
        """The trained student as a network, on the CPU and in evaluation mode. Needs torch.

        Args:
            job_id: of the job.
            allowed_factories: module prefixes that its ``arch: package.module:factory`` may be imported from.
        """
        return await outputs.load_student(self._connection, await self.get(job_id), allowed_factories)

    async def _ask(self, method: str, path: str, **arguments: Any) -> J:
        return await self._connection.ask(Request(method, path, **arguments), self._bind)


def _fields(spec: Mapping[str, Any] | JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else dict(spec)
