"""Requests as data, and the one place that sends them: addresses, keys, retries, errors.

A request is tried again when that can do no harm: when it never reached the service, when the service said that
it did nothing (429), or when doing it twice comes to the same (``Request.is_repeatable``). Between tries lies an
exponential backoff with jitter, or what ``Retry-After`` asks for if that is longer.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent

from synth_service.client.errors import ApiError, ServerUnreachable, UnexpectedAnswer
from synth_service.client.transports import Transport

Result = TypeVar("Result")

DEFAULT_URL: Final = "http://127.0.0.1:8000"
GATEWAY_STATUSES: Final = frozenset({502, 503, 504})
NOT_MODIFIED: Final = 304
TOO_MANY_REQUESTS: Final = 429
FIRST_BACKOFF_SECONDS: Final = 0.25
LONGEST_BACKOFF_SECONDS: Final = 8.0
LONGEST_RETRY_AFTER_SECONDS: Final = 60.0
"""Whoever is asked to wait for longer hears of the refusal instead."""

_NOTHING_WAS_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Content(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that is read anew for every try. Blocking also where it is read by an event loop: it is a local file.

    Args:
        read: gives the parts of the body.
        size_bytes: their length in all.
    """

    def __init__(self, read: Callable[[], Iterable[bytes]], size_bytes: int) -> None:
        self._read = read
        self.size_bytes = size_bytes

    def __iter__(self) -> Any:
        yield from self._read()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._read():
            yield chunk


@dataclass(frozen=True)
class Request:
    """One request to the API.

    Attributes:
        path: made by ``path_of``.
        is_repeatable: whether sending it twice comes to the same as sending it once.
        timeout_seconds: longest silence, where it is not the client's.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: Content | None = None
    is_repeatable: bool = True
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Retry:
    """A request that will be tried again, for whoever wants to know."""

    request: Request
    failure: Exception
    delay_seconds: float


class Connection:
    """One address and one key.

    Args:
        transport: sends.
        url: of the API.
        api_key: sent with every request, to this address alone: redirects are not followed.
        timeout_seconds: longest silence before a request counts as unanswered.
        retries: tries after the first.
        on_retry: is told of each before the pause that it begins with.

    Raises:
        ValueError: the address is no http:// or https:// URL, or the key cannot be sent.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        *,
        api_key: str | None,
        timeout_seconds: float,
        retries: int,
        on_retry: Callable[[Retry], None] | None,
    ) -> None:
        self.url = _checked_url(url)
        self._headers = {"User-Agent": "dfkd-client", **_authorization(api_key)}
        self._transport = transport
        self._timeout_seconds = timeout_seconds
        self.retries = retries
        self._on_retry = on_retry

    async def send(self, request: Request) -> httpx.Response:
        """Sends a request and reads the answer.

        Raises:
            ServerUnreachable: no answer after all tries.
            ApiError: the answer is a refusal.
        """
        return await self._open(request, read=True)

    async def ask(self, request: Request, parse: Callable[[Any], Result]) -> Result:
        """Sends a request and returns what ``parse`` makes of the JSON of the answer. Raises as ``send``, and

        Raises:
            UnexpectedAnswer: it can make nothing of it.
        """
        return self.parsed(request, await self.send(request), parse)

    def parsed(self, request: Request, answer: httpx.Response, parse: Callable[[Any], Result]) -> Result:
        """What ``parse`` makes of the JSON of an answer. Raises UnexpectedAnswer if it can make nothing of it."""
        try:
            return parse(answer.json())
        except (ValueError, LookupError, TypeError) as error:
            raise self.unexpected(request) from error

    def unexpected(self, request: Request) -> UnexpectedAnswer:
        """The error for an answer that makes no sense."""
        return UnexpectedAnswer(
            f"{self.url} answers to {request.method} {request.path} in a way that this client does not understand; "
            "is that the address of the service, and is it of the same version?"
        )

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[httpx.Response]:
        """Sends a request; the body is then to be read from ``chunks`` or ``events``. Raises as ``send``.

        Only what fails before the body begins is tried again.
        """
        response = await self._open(request, read=False)
        try:
            yield response
        except httpx.TransportError as error:
            raise self._no_answer(error) from error
        finally:
            await self._transport.release(response)

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body of a streamed answer."""
        return self._transport.chunks(response)

    def events(self, response: httpx.Response) -> AsyncIterator[ServerSentEvent]:
        """The body of a streamed answer as server-sent events."""
        return self._transport.events(response)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await self._transport.sleep(seconds)

    async def run_blocking(self, function: Callable[[], Result]) -> Result:
        """The result of a function that blocks; an event loop goes on meanwhile."""
        return await self._transport.run_blocking(function)

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def _open(self, request: Request, *, read: bool) -> httpx.Response:
        tries, is_repeated = 0, False
        while True:
            delay = 0.0
            failure: Exception
            try:
                response = await self._transport.send(self._built(request))
                if read or not response.is_success:
                    try:
                        await self._transport.read(response)
                    finally:
                        await self._transport.release(response)
            except httpx.TransportError as error:
                failure = self._no_answer(error)
                failure.__cause__ = error
                is_unsent = isinstance(error, _NOTHING_WAS_SENT)
            else:
                if response.is_success or response.status_code == NOT_MODIFIED:
                    return response
                refusal = ApiError(response, is_repeated=is_repeated)
                is_unsent = refusal.status == TOO_MANY_REQUESTS
                if refusal.status not in GATEWAY_STATUSES and not is_unsent:
                    raise refusal
                delay = retry_after(response) or 0.0
                failure = refusal if is_unsent else self._away(response, refusal)
            may_repeat = request.is_repeatable or is_unsent
            if tries == self.retries or not may_repeat or delay > LONGEST_RETRY_AFTER_SECONDS:
                raise failure
            is_repeated = is_repeated or not is_unsent
            delay = max(delay, backoff(tries))
            tries += 1
            if self._on_retry is not None:
                self._on_retry(Retry(request, failure, delay))
            await self._transport.sleep(delay)

    def _built(self, request: Request) -> httpx.Request:
        timeout = httpx.Timeout(request.timeout_seconds or self._timeout_seconds)
        headers = {**self._headers, **request.headers}
        if request.content is not None:
            headers["Content-Length"] = str(request.content.size_bytes)
        built = httpx.Request(
            request.method,
            self.url + request.path,
            params=dict(request.params) or None,
            headers=headers,
            json=request.json,
            extensions={"timeout": timeout.as_dict()},
        )
        if request.content is not None:
            built.stream = request.content
        return built

    def _no_answer(self, error: httpx.TransportError) -> ServerUnreachable:
        return ServerUnreachable(f"no answer from {self.url} ({str(error) or type(error).__name__})")

    def _away(self, response: httpx.Response, refusal: ApiError) -> ServerUnreachable:
        return ServerUnreachable(f"{self.url} answers {response.status_code}: {refusal}")


def path_of(*parts: str) -> str:
    """A path of these parts; none of them can become two."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def backoff(tries: int) -> float:
    """Seconds before the next try. Jitter keeps clients apart that were cut off together."""
    longest = min(FIRST_BACKOFF_SECONDS * 2.0**tries, LONGEST_BACKOFF_SECONDS)
    return longest * random.uniform(0.75, 1.0)  # noqa: S311 -- not a secret


def retry_after(response: httpx.Response) -> float | None:
    """The ``Retry-After`` header in seconds, written as a number or as a date; None without one."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"server address {url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"server address {url!r}: give one like {DEFAULT_URL}")
    return url.rstrip("/")


def _authorization(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("the API key holds characters that no key has; copy it again")
    return {"Authorization": f"Bearer {api_key}"}
