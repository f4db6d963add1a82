"""What can go wrong between a client and the service. Every error is a ``ClientError``."""

from __future__ import annotations

from typing import Any

import httpx

from shared.jobs import JobRecord
from synth_service.wire import FieldError


class ClientError(Exception):
    """Base of what the client raises of its own accord."""


class ServerUnreachable(ClientError):
    """No answer, or one that says that the service is away for the moment."""


class UnexpectedAnswer(ClientError):
    """Whatever answers there, it is not this service, or a version of it that this client does not know."""


class DamagedDownload(ClientError):
    """The bytes that arrived are not those that were announced."""


class DamagedUpload(ClientError):
    """The bytes that arrived are not those that were sent."""


class HubError(ClientError):
    """The Hugging Face hub did not take what was to be pushed, or there is nothing to push.

    Attributes:
        is_usage: whether it takes another call, name or token, and not another try.
    """

    def __init__(self, message: str, *, is_usage: bool = False) -> None:
        super().__init__(message)
        self.is_usage = is_usage


class ApiError(ClientError):
    """The API refused a request.

    Attributes:
        status: HTTP status.
        code: stable, snake_case; branch on this.
        errors: what is wrong with which field, if fields are to blame.
        hint: what to do about it, if the API said.
        is_repeated: whether an earlier try of the same request may have been carried out, its answer lost.
    """

    def __init__(self, response: httpx.Response, *, is_repeated: bool = False) -> None:
        problem = _problem(response)
        self.status = response.status_code
        self.code = str(problem.get("code") or f"http_{self.status}")
        self.hint = str(problem.get("hint") or "")
        self.is_repeated = is_repeated
        self.errors = [
            FieldError(field=str(each.get("field", "")), message=str(each.get("message", "")))
            for each in problem.get("errors") or []
            if isinstance(each, dict)
        ]
        detail = problem.get("detail") or problem.get("title") or response.reason_phrase
        super().__init__(str(detail))


class JobNotSucceeded(ClientError):
    """A job ended in another way than with success.

    Attributes:
        job: how it ended; ``job.error`` says why it failed.
    """

    def __init__(self, job: JobRecord) -> None:
        self.job = job
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"{job.id} is {job.state}{reason}")


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The problem details of an answer; empty when it has none, as those of proxies."""
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
