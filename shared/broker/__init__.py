"""Everything that goes through Redis; the only package that names a Redis key.

``Broker`` is the way in. ``jobs`` is the client's side (create, read, list, cancel), ``leases`` the
worker's (claim, renew, give back, finish). While a job runs its workers meet in ``shards``, ``snapshots`` (of the
student) and ``checkpoints``, and tell of it in ``reports`` and ``workers``. ``models`` are uploaded weights,
``webhooks`` is who is still to be told of a job's end,
``retention`` is how jobs leave and ``statistics`` what operators watch. State lives in one hash per job; queue
entries only point to it. Only commands that both Redis 6.2 and Valkey have are used.
The keys of a script hash to different slots: one server or a primary with replicas, not a cluster.
"""

import redis

from shared.broker.access import Access
from shared.broker.allowances import bytes_of
from shared.broker.attempts import Attempt, JobStopped, LeaseLost
from shared.broker.checkpoints import Checkpoints
from shared.broker.connection import (
    FOREVER,
    SOCKET_TIMEOUT_SECONDS,
    Client,
    Patience,
    ServerUnavailable,
    connect,
    misconfiguration,
)
from shared.broker.jobs import Jobs
from shared.broker.leases import Leases
from shared.broker.models import ModelInUse, Models
from shared.broker.refusals import (
    AllowanceUsed,
    IdempotencyConflict,
    JobFinished,
    JobSucceeded,
    JobUnfinished,
    ModelMissing,
    NotExternal,
    QueueFull,
)
from shared.broker.reports import Reports
from shared.broker.retention import Retention
from shared.broker.session_secret import session_secret
from shared.broker.shards import AnnouncedShard, Backlog, Shards, SynthesisPosition, UsedUp
from shared.broker.snapshots import Snapshots, StudentSnapshot
from shared.broker.statistics import Statistics
from shared.broker.storage_record import StorageRecord
from shared.broker.webhooks import Delivery, Webhooks
from shared.broker.workers import Workers

__all__ = [
    "AllowanceUsed",
    "AnnouncedShard",
    "Attempt",
    "Backlog",
    "Broker",
    "Checkpoints",
    "Delivery",
    "IdempotencyConflict",
    "JobFinished",
    "JobStopped",
    "JobSucceeded",
    "JobUnfinished",
    "Jobs",
    "LeaseLost",
    "Leases",
    "ModelInUse",
    "ModelMissing",
    "Models",
    "NotExternal",
    "QueueFull",
    "Reports",
    "Retention",
    "ServerUnavailable",
    "Shards",
    "Snapshots",
    "StudentSnapshot",
    "SynthesisPosition",
    "UsedUp",
    "Webhooks",
    "Workers",
]


class Broker:
    """One connection pool and the views of what is behind it.

    Args:
        url: redis://, rediss:// or redis+sentinel:// address; see ``shared.broker.connection``.
        lease_seconds: silence after which a worker loses its claim.
        max_attempts: attempts in a row without progress after which a job fails.
        retries: before a command gives up with ``ServerUnavailable``; by default it never does.
        timeout_seconds: how long one answer may take; a worker's must exceed ``BLOCK_SECONDS``.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_seconds: float = 15.0,
        max_attempts: int = 3,
        retries: int = FOREVER,
        timeout_seconds: float = SOCKET_TIMEOUT_SECONDS,
    ) -> None:
        self._url = url
        self._patience = Patience()
        self.redis: Client = connect(url, retries=retries, timeout_seconds=timeout_seconds, patience=self._patience)
        self.access = Access(self.redis)
        self.jobs = Jobs(self.redis)
        self.models = Models(self.redis)
        self.leases = Leases(self.redis, lease_seconds=lease_seconds, max_attempts=max_attempts)
        self.shards = Shards(self.redis, lease_seconds=lease_seconds)
        self.checkpoints = Checkpoints(self.redis)
        self.snapshots = Snapshots(self.redis)
        self.reports = Reports(self.redis)
        self.workers = Workers(self.redis)
        self.webhooks = Webhooks(self.redis)
        self.retention = Retention(self.redis)
        self.statistics = Statistics(self.redis)
        self.storage_record = StorageRecord(self.redis)

    def complaint(self) -> str | None:
        """Why the server will never let us in, asked once and without patience; None when it does, or is away."""
        client = connect(self._url, retries=0)
        try:
            client.ping()
        except redis.RedisError as error:
            return misconfiguration(error)
        finally:
            client.close()
        return None

    def hurry(self, seconds: float) -> None:
        """Waits no longer than this for a server that does not answer, now that the process is to end."""
        self._patience.hurry(seconds)

    def bytes_of(self, owner: str) -> int:
        """Bytes of the uploaded checkpoints and datasets of a key's owner."""
        return bytes_of(self.redis, owner)

    def session_secret(self) -> str:
        """What signs the dashboard's sign-ins."""
        return session_secret(self.redis)

    def close(self) -> None:
        """Closes the connections."""
        self.redis.close()
