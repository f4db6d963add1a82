"""Connections that outlive an outage.

A server can be away in many ways: it does not answer, it loads its data, a failover has made it a replica, it is full,
its disk is. All of them pass, so all are one ``ServerUnavailable`` here, and every command is tried again first: by
workers for as long as it takes, since a job of hours must not die of a server restart; by the API for a moment, so
that a client hears 503 and not silence. A command may be sent twice when its answer is lost on the way: every script
of this package does nothing the second time.

An address is ``redis://`` or ``rediss://`` (TLS) for one server, or for one that Sentinels watch
``redis+sentinel://[user:password@]host:port,host:port/SERVICE[/DATABASE]``, with ``rediss+sentinel://`` for TLS.
"""

from __future__ import annotations

import math
import re
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import redis
import structlog
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import SSLConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

logger = structlog.get_logger()

SOCKET_TIMEOUT_SECONDS = 5.0
BLOCK_SECONDS = 2.0
"""How long a blocking read waits: well below the socket timeout, or an idle queue would look like an outage."""

FOREVER: Final = -1
"""Retries of a worker."""

TOLD_EVERY_SECONDS = 30.0

RESP: Final = 2
"""Of the protocol's versions the one that every server speaks, whatever the address asks for: one shape of answers."""

SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")

_PASSING = (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
    TryAgainError,
)
# Of scripts, servers before 7 tell the reason in the middle of a sentence; some codes have no class in redis-py.
_PASSING_CODES = re.compile(
    r"(?:^|[\s:-])(?:READONLY|OOM|MISCONF|LOADING|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|UNKILLABLE)\b"
)

Result = TypeVar("Result")


class ServerUnavailable(ConnectionError):
    """The server could not do what it was asked to, for a reason that will pass. The argument tells it."""


def will_pass(error: BaseException) -> bool:
    """Whether the server is only away, or cannot write for a while; any other error of it is a fault of ours."""
    if isinstance(error, _PASSING):
        return True
    return isinstance(error, ResponseError) and _PASSING_CODES.search(str(error)) is not None


def misconfiguration(error: BaseException) -> str | None:
    """Why this server will never let us in as we are set up, in one line; None for an error that may pass."""
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({each.verify_message}); name its authority with ssl_ca_certs=FILE"
        if isinstance(each, ssl.SSLError):
            return f"it does not speak TLS as we do ({each.reason or each}); compare rediss:// and redis://"
        if isinstance(each, AuthenticationError | AuthorizationError | NoPermissionError):
            return f"it refuses user or password ({each})"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Patience(ExponentialWithJitterBackoff):
    """Pauses between tries: growing, jittered, and cut short once the process is to end. Tells of outages.

    One object serves all connections of a client, also where redis-py copies what it was given.
    """

    def __init__(self) -> None:
        super().__init__(base=0.05, cap=2.0)
        self._deadline = math.inf
        self._told_at: float | None = None

    def hurry(self, seconds: float) -> None:
        """From now on, gives a server that does not answer no more than this time."""
        self._deadline = time.monotonic() + seconds

    def compute(self, failures: int) -> float:
        """Seconds to wait after this many failures. Raises ServerUnavailable when there is no time left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ServerUnavailable("the server did not answer and this process is about to end")
        return min(left, super().compute(failures))

    def failed(self, error: BaseException) -> None:
        """Logs the first failure at once, and then one now and then."""
        moment = time.monotonic()
        if self._told_at is None or moment - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = moment
            logger.warning("server_unavailable", error=misconfiguration(error) or str(error))

    def succeeded(self) -> None:
        """Logs the end of an outage."""
        if self._told_at is not None:
            self._told_at = None
            logger.info("server_is_back")

    def __deepcopy__(self, _: object) -> Patience:
        return self


class PatientRetry(Retry):
    """Tries again after whatever will pass, and makes one error of it when it did not.

    Args:
        patience: between tries.
        retries: before it gives up; ``FOREVER`` never does.
    """

    def __init__(self, patience: Patience, retries: int) -> None:
        super().__init__(patience, retries, supported_errors=(ConnectionError, TimeoutError))
        self._patience = patience

    def call_with_retry(
        self,
        do: Callable[[], Result],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Result:
        """Calls ``do``, and after each failure ``fail``, which closes the connection: the next may lead elsewhere.

        Raises:
            ServerUnavailable: it failed once more than it may.
        """
        failures = 0
        while True:
            try:
                result = do()
            except ServerUnavailable:
                raise  # of a call inside of this one, which has had its patience
            except RedisError as error:
                if not will_pass(error) or (is_retryable and not is_retryable(error)):
                    raise
                failures += 1
                if with_failure_count:
                    fail(error, failures)
                else:
                    fail(error)
                if self._retries:  # whoever asks once says so itself
                    self._patience.failed(error)
                if 0 <= self._retries < failures:
                    raise ServerUnavailable(f"{type(error).__name__}: {error}") from error
                time.sleep(self._patience.compute(failures))
            else:
                if failures:  # of this call, and not only of one inside of another that goes on failing
                    self._patience.succeeded()
                return result


Client: TypeAlias = Any
"""A ``redis.Redis``. Its annotations allow bytes and str in every answer; ours always decodes to str."""


def connect(
    url: str,
    *,
    retries: int = FOREVER,
    timeout_seconds: float = SOCKET_TIMEOUT_SECONDS,
    patience: Patience | None = None,
) -> Client:
    """A client that decodes to str and tries again with growing pauses. No connection is made yet.

    Args:
        url: of the server; see the top of this module.
        retries: before a command gives up.
        timeout_seconds: how long one answer may take.
        patience: between tries.

    Raises:
        ValueError: the address is none of those.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": min(2.0, timeout_seconds),
        "health_check_interval": 30,
        "retry": PatientRetry(patience or Patience(), retries),
    }
    if urlsplit(url).scheme in SENTINEL_SCHEMES:
        return _watched_by_sentinels(url, options)
    return redis.Redis.from_url(_without_protocol(url), protocol=RESP, **options)


def _without_protocol(url: str) -> str:
    """The address without its own wish, which would win."""
    return re.sub(r"(?<=[?&])protocol=[^&]*(?:&|$)", "", url).rstrip("?&")


class _WatchedConnection(SentinelManagedConnection):
    """Asks the Sentinels at every new connection: redis-py's own, while it sends, goes back to the address it had."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Sends a command, connecting first if need be."""
        if not self._sock:
            self.connect()  # type: ignore[no-untyped-call]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class _WatchedSSLConnection(_WatchedConnection, SSLConnection):
    """The same with TLS."""


def _watched_by_sentinels(url: str, options: dict[str, Any]) -> Client:
    """A client of whichever server the Sentinels call the primary, asked at every new connection."""
    sentinels, service, database = sentinel_address(url)
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    same = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
    watch: Any = Sentinel  # redis-py has not typed it
    is_encrypted = parts.scheme.startswith("rediss")
    return watch(sentinels, sentinel_kwargs=same).master_for(
        service,
        connection_class=_WatchedSSLConnection if is_encrypted else _WatchedConnection,
        db=database,
        username=unquote(user) or None,
        password=unquote(password) or None,
        ssl=is_encrypted,
        protocol=RESP,
        **options,
    )


def sentinel_address(url: str) -> tuple[list[tuple[str, int]], str, int]:
    """Addresses of the Sentinels, name of the service, and number of the database.

    Raises:
        ValueError: the address is not complete.
    """
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    hosts = [each.rpartition(":") for each in parts.netloc.rpartition("@")[2].split(",")]
    if (
        not service
        or not all(host and port.isdecimal() for host, _, port in hosts)
        or not (database or "0").isdecimal()
    ):
        raise ValueError("write redis+sentinel://[user:password@]host:port,host:port/SERVICE[/DATABASE]")
    return [(host.strip("[]"), int(port)) for host, _, port in hosts], service, int(database or 0)
