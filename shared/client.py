"""A client of the HTTP API.

Every method is one request and raises one of two things: ``ServerUnreachable`` when no answer came (the
request may be tried again) and ``ApiError`` when the answer is a refusal. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from shared.jobs import JobRecord
from shared.manifests import ShardManifest

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_GATEWAY_STATUSES: Final = frozenset({502, 503, 504})
_SHARDS_PER_PAGE: Final = 1000
_SUBMIT_TRIES: Final = 3
_SUBMIT_PAUSE_SECONDS: Final = 0.3
_LONGEST_RETRY_AFTER_SECONDS: Final = 60.0


class ServerUnreachable(Exception):
    """No answer, or one that says that the service is away for the moment."""


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field of a request."""

    field: str
    message: str


class ApiError(Exception):
    """The API refused a request.

    Attributes:
        status: HTTP status.
        code: stable, snake_case.
        errors: what is wrong with which field, if fields are to blame.
        hint: what to do about it, if the API said.
    """

    def __init__(self, response: httpx.Response) -> None:
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        problem = problem if isinstance(problem, dict) else {}
        self.status = response.status_code
        self.code = str(problem.get("code") or f"http_{self.status}")
        self.hint = str(problem.get("hint") or "")
        self.errors = [
            FieldError(str(each.get("field", "")), str(each.get("message", "")))
            for each in problem.get("errors") or []
            if isinstance(each, dict)
        ]
        detail = problem.get("detail") or problem.get("title") or response.reason_phrase
        super().__init__(str(detail))


class DamagedDownload(Exception):
    """The bytes that arrived are not those that were announced."""


class JobPage(BaseModel):
    """Part of the list of jobs, newest first."""

    data: list[JobRecord]
    has_more: bool = False


@dataclass(frozen=True)
class Poll:
    """A job as the last poll found it, and how long the server would like to be left alone."""

    job: JobRecord
    retry_after_seconds: float | None


class Client:
    """One connection pool to the API; a context manager.

    Args:
        url: address of the API, such as ``http://127.0.0.1:8000``.
        timeout_seconds: longest silence before a request counts as unanswered.

    Raises:
        ValueError: the address is no http:// or https:// URL.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_seconds: float = 10.0) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"server address {url!r}: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"server address {url!r}: give one like {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds)
        self._seen: dict[str, tuple[str, JobRecord]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def submit(self, spec: Mapping[str, Any]) -> JobRecord:
        """Creates a job from its specification; one job, however often the answer is lost on the way."""
        key = {"Idempotency-Key": secrets.token_hex(16)}
        for _ in range(_SUBMIT_TRIES - 1):
            with suppress(ServerUnreachable):
                return self._record(self._send("POST", "/jobs", json=spec, headers=key))
            time.sleep(_SUBMIT_PAUSE_SECONDS)
        return self._record(self._send("POST", "/jobs", json=spec, headers=key))

    def job(self, job_id: str) -> JobRecord:
        """One job."""
        return self._record(self._send("GET", _path("jobs", job_id)))

    def poll(self, job_id: str) -> Poll:
        """One job, asked for again and again: an unchanged one is not sent twice where the API supports that."""
        tag, known = self._seen.get(job_id, ("", None))
        response = self._send("GET", _path("jobs", job_id), headers={"If-None-Match": tag} if known else {})
        if response.status_code == httpx.codes.NOT_MODIFIED and known is not None:
            record = known
        else:
            record = self._record(response)
            if tag := response.headers.get("ETag", ""):
                self._seen[job_id] = (tag, record)
        return Poll(record, _seconds(response.headers.get("Retry-After")))

    def jobs(
        self, *, status: str | None = None, name: str | None = None, limit: int | None = None, after: str | None = None
    ) -> JobPage:
        """A page of jobs, newest first, those after ``after`` if given."""
        wanted = {"status": status, "name": name, "limit": limit, "after": after}
        query = {field: str(value) for field, value in wanted.items() if value is not None}
        return JobPage.model_validate_json(self._send("GET", "/jobs", params=query).content)

    def cancel(self, job_id: str) -> JobRecord:
        """Asks a job to stop."""
        return self._record(self._send("POST", _path("jobs", job_id, "cancel")))

    def delete(self, job_id: str) -> None:
        """Removes a finished job and everything it made."""
        self._send("DELETE", _path("jobs", job_id))

    def shards(self, job_id: str) -> list[ShardManifest]:
        """Manifests of the shards that were announced so far, all pages of them."""
        manifests: list[ShardManifest] = []
        query = {"limit": str(_SHARDS_PER_PAGE)}
        while True:
            page = self._send("GET", _path("jobs", job_id, "shards"), params=query).json()
            entries = page["data"]
            # `id` is the shard's place in the list and no part of its manifest.
            manifests += [
                ShardManifest.model_validate({name: value for name, value in each.items() if name != "id"})
                for each in entries
            ]
            if not page["has_more"]:
                return manifests
            query["after"] = entries[-1]["id"]

    def download_shard(self, manifest: ShardManifest, target: Path) -> None:
        """Stores a shard under ``target``, checked against its manifest.

        Raises:
            DamagedDownload: what arrived has another sha256.
        """
        self._download(_path("jobs", manifest.job, "shards", manifest.name), target, manifest.sha256)

    def download_student(self, job_id: str, target: Path) -> None:
        """Stores the trained student (safetensors) under ``target``."""
        self._download(_path("jobs", job_id, "student"), target)

    def download_grid(self, job_id: str, target: Path) -> None:
        """Stores the picture grid (PNG) under ``target``."""
        self._download(_path("jobs", job_id, "grid.png"), target)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """Values that were measured, oldest first: ``{task, at, step, values}``."""
        entries: list[dict[str, Any]] = self._send("GET", _path("jobs", job_id, "metrics")).json()["data"]
        return entries

    def _record(self, response: httpx.Response) -> JobRecord:
        return JobRecord.model_validate_json(response.content)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with self._answers():
            response = self._http.request(method, path, **arguments)
            _raise_for_status(response)
            return response

    def _download(self, path: str, target: Path, sha256: str | None = None) -> None:
        """Streams to a temporary file beside the target, which appears whole and verified or not at all."""
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{secrets.token_hex(8)}")
        try:
            with self._answers(), self._http.stream("GET", path) as response, temporary.open("wb") as file:
                if response.is_error:
                    response.read()
                _raise_for_status(response)
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise DamagedDownload(f"{target.name}: sha256 is {digest.hexdigest()}, announced was {sha256}")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns every way of not getting an answer into ServerUnreachable."""
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnreachable(f"no answer from {self.url} ({reason})") from error


def _raise_for_status(response: httpx.Response) -> None:
    if response.status_code in _GATEWAY_STATUSES:
        reason = ApiError(response)
        raise ServerUnreachable(f"{response.url.host} answers {response.status_code}: {reason}")
    if response.is_error:
        raise ApiError(response)


def _path(*parts: str) -> str:
    """A path of these parts; none of them can become two."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds; a date, which the header may also be, counts as absent."""
    try:
        return min(max(float(retry_after or ""), 0.0), _LONGEST_RETRY_AFTER_SECONDS)
    except ValueError:
        return None
