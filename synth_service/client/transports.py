"""How requests travel: blocking, or in an event loop. Everything above this module is written once, as coroutines.

Whatever the client does is an ``async def`` over a ``Transport``. Those of ``AsyncTransport`` really wait in the
event loop. Those of ``BlockingTransport`` block instead and never suspend, so a coroutine over it runs to its end
in a single step: ``run`` takes that step, without an event loop or a thread, and is all that the blocking client
adds. (It therefore also works where a loop is running already, as in a notebook.)
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent

from synth_service.client.environment import route_to

Result = TypeVar("Result")


class Transport(Protocol):
    """Sends requests and waits."""

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Sends; returns once the head of the answer is there. Raises httpx.TransportError."""

    async def read(self, response: httpx.Response) -> None:
        """Reads the body into ``response.content``."""

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body as it arrives."""

    def events(self, response: httpx.Response) -> AsyncIterator[ServerSentEvent]:
        """The body as server-sent events, as they arrive. An event that was cut short is left out."""

    async def release(self, response: httpx.Response) -> None:
        """Ends an answer, read or not."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def run_blocking(self, function: Callable[[], Result]) -> Result:
        """The result of a function that blocks."""

    async def close(self) -> None:
        """Closes the connections."""


class AsyncTransport:
    """For an event loop.

    Args:
        url: the one address that requests go to.
        timeout_seconds: longest silence before a request counts as unanswered.

    Raises:
        ValueError: a variable of the environment is in the way; see ``synth_service.client.environment``.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        route = route_to(url)
        self._http = httpx.AsyncClient(
            timeout=timeout_seconds, trust_env=False, proxy=route.proxy, verify=route.certificates
        )

    async def send(self, request: httpx.Request) -> httpx.Response:
        """See ``Transport``."""
        return await self._http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        """See ``Transport``."""
        await response.aread()

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """See ``Transport``."""
        async for chunk in response.aiter_bytes():
            yield chunk

    async def events(self, response: httpx.Response) -> AsyncIterator[ServerSentEvent]:
        """See ``Transport``."""
        async for event in EventSource(response).aiter_sse():
            yield event

    async def release(self, response: httpx.Response) -> None:
        """See ``Transport``."""
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        """See ``Transport``."""
        await anyio.sleep(seconds)

    async def run_blocking(self, function: Callable[[], Result]) -> Result:
        """See ``Transport``. It runs in a thread."""
        return await anyio.to_thread.run_sync(function)

    async def close(self) -> None:
        """See ``Transport``."""
        await self._http.aclose()


class BlockingTransport:
    """For ordinary functions: its coroutines block and never suspend.

    Args:
        url: the one address that requests go to.
        timeout_seconds: longest silence before a request counts as unanswered.
        sleep: waits; what it raises ends what was waiting.

    Raises:
        ValueError: as ``AsyncTransport``.
    """

    def __init__(self, url: str, timeout_seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        route = route_to(url)
        self._http = httpx.Client(
            timeout=timeout_seconds, trust_env=False, proxy=route.proxy, verify=route.certificates
        )
        self._sleep = sleep

    async def send(self, request: httpx.Request) -> httpx.Response:
        """See ``Transport``."""
        return self._http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        """See ``Transport``."""
        response.read()

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """See ``Transport``."""
        for chunk in response.iter_bytes():
            yield chunk

    async def events(self, response: httpx.Response) -> AsyncIterator[ServerSentEvent]:
        """See ``Transport``."""
        for event in EventSource(response).iter_sse():
            yield event

    async def release(self, response: httpx.Response) -> None:
        """See ``Transport``."""
        response.close()

    async def sleep(self, seconds: float) -> None:
        """See ``Transport``."""
        self._sleep(seconds)

    async def run_blocking(self, function: Callable[[], Result]) -> Result:
        """See ``Transport``."""
        return function()

    async def close(self) -> None:
        """See ``Transport``."""
        self._http.close()


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine over a ``BlockingTransport`` to its end."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine over a blocking transport must not suspend")


def iterate(generator: AsyncGenerator[Result, None]) -> Iterator[Result]:
    """Iterates over an asynchronous generator over a ``BlockingTransport``; leaving the loop closes it."""
    try:
        while True:
            try:
                item = run(_next(generator))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(_close(generator))


async def _next(generator: AsyncGenerator[Result, None]) -> Result:
    return await anext(generator)


async def _close(generator: AsyncGenerator[Result, None]) -> None:
    await generator.aclose()
