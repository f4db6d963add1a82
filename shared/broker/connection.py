"""Connections that outlive an outage.

Workers hold on for a minute and more, since a job of hours must not die of a server restart; the API
gives up after a moment, so that a client hears 503 and not silence. A command may be sent twice when
its answer is lost on the way: every script of this package does nothing the second time.
"""

import math
import time
from typing import Any, TypeAlias

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

SOCKET_TIMEOUT_SECONDS = 5.0
BLOCK_SECONDS = 2.0
"""How long a blocking read waits: well below the socket timeout, or an idle queue would look like an outage."""

WORKER_PATIENCE_RETRIES = 90
"""With pauses of at most two seconds, jittered: more than a minute of outage is survived."""


class Patience(ExponentialWithJitterBackoff):
    """Pauses between reconnections: growing, jittered, and cut short once the process is to end.

    One object serves all connections of a client, also where redis-py copies what it was given.
    """

    def __init__(self) -> None:
        super().__init__(base=0.05, cap=2.0)
        self._deadline = math.inf

    def hurry(self, seconds: float) -> None:
        """From now on, gives a server that does not answer no more than this time."""
        self._deadline = time.monotonic() + seconds

    def compute(self, failures: int) -> float:
        """Seconds to wait after this many failures. Raises ConnectionError when there is no time left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ConnectionError("the server did not answer and this process is about to end")
        return min(left, super().compute(failures))

    def __deepcopy__(self, _: object) -> "Patience":
        return self


Client: TypeAlias = Any
"""A ``redis.Redis``. Its annotations allow bytes and str in every answer; ours always decodes to str."""


def connect(
    url: str,
    *,
    retries: int = WORKER_PATIENCE_RETRIES,
    timeout_seconds: float = SOCKET_TIMEOUT_SECONDS,
    patience: Patience | None = None,
) -> Client:
    """A client that decodes to str and reconnects with backoff. No connection is made yet.

    Raises:
        ValueError: the URL has no redis://, rediss:// or unix:// scheme.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(2.0, timeout_seconds),
        health_check_interval=30,
        retry=Retry(patience or Patience(), retries),
        retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError],
    )
