"""Names of the Redis keys. No other package spells one.

All keys of a job share the prefix ``dfkd:job:ID``. A task's fields live in the job's hash under
``role:partition:field``, so that one ``HGETALL`` shows the whole job.
"""

from typing import Final, NewType

from shared.jobs import Role

Key = NewType("Key", str)
"""The name of a Redis key."""

PREFIX: Final = "dfkd:"
GROUP: Final = "workers"
"""The consumer group of both queues."""

JOBS: Final = Key(f"{PREFIX}jobs")
"""Sorted set of all job ids, equal scores: ids sort by creation."""

MODELS: Final = Key(f"{PREFIX}models")
"""Sorted set of the ids of all uploaded checkpoints, equal scores: ids sort by creation."""

UNFINISHED: Final = Key(f"{PREFIX}jobs:unfinished")
"""Set of the ids of jobs in no final state."""

UNTIDY: Final = Key(f"{PREFIX}jobs:untidy")
"""Set of the ids of jobs that have ended and may have left working files; see ``shared.worker.retention``."""

DELETED: Final = Key(f"{PREFIX}jobs:deleted")
"""Set of the ids of jobs that are gone here and whose files have yet to follow."""

TIDY_AGAIN: Final = Key(f"{PREFIX}jobs:tidy-again")
"""Sorted set of the ids of jobs that have ended or are gone, by when to look once more for what the dead have left."""

WEBHOOKS: Final = Key(f"{PREFIX}webhooks")
"""Sorted set of the ids of ended jobs whose address has yet to be told, by when that is due; see
``shared.broker.webhooks``."""

SESSION_SECRET: Final = Key(f"{PREFIX}session-secret")
"""String: what signs the dashboard's sign-ins."""

ACCESS_KEYS: Final = Key(f"{PREFIX}access:keys")
"""Hash: API keys that were made while the service runs, by fingerprint, as JSON."""

ACCESS_REVOKED: Final = Key(f"{PREFIX}access:revoked")
"""Hash: when API keys were revoked, by fingerprint."""

ACCESS_SESSIONS: Final = Key(f"{PREFIX}access:ended-sessions")
"""Sorted set: digests of sign-ins that have ended before their time, by when they would have."""

ACCESS_VERSION: Final = Key(f"{PREFIX}access:version")
"""Number that changes with any of the three."""

STORAGE: Final = Key(f"{PREFIX}storage")
"""String: the id that the marker file in the storage root holds; see ``shared.storage.identity``."""

PROBE: Final = Key(f"{PREFIX}probe")
"""Written by those who ask whether the server can be written to."""

HEARD: Final = Key(f"{PREFIX}heard")
"""Hash: when the server has last heard of anybody, and when it was last heard of again after an outage."""

SWEEPER: Final = Key(f"{PREFIX}sweeper")
"""Exists while somebody has lately begun to tidy up."""

STATISTICS: Final = Key(f"{PREFIX}statistics")
"""Hash of counts over all jobs that there ever were; see ``shared.broker.statistics``."""

NEWEST_MEASUREMENT: Final = "newest:measurement"
"""Field of that hash: the last measurement of a student, of any job, as JSON."""

WORKERS: Final = Key(f"{PREFIX}workers")
"""Sorted set of the names of workers, by when they were last heard of."""

NO_ENTRY: Final = "0"
"""Comes before every id of a stream."""

NOBODY: Final = "nobody"
"""The consumer that holds the entries that workers gave back."""

EVENTS_KEPT: Final = 10_000
METRICS_KEPT: Final = 200_000
METRIC_BLOCKS_KEPT: Final = 20_000
"""Blocks of rows in an overview. They outlast the rows: see ``shared.broker.reports``."""
IDEMPOTENCY_SECONDS: Final = 24 * 3600


def queue(role: Role) -> Key:
    """Stream of ``{job, partition}`` entries that workers of a role claim."""
    return Key(f"{PREFIX}queue:{role}")


def in_state(state: str) -> Key:
    """Sorted set of the ids of the jobs in a state, like ``JOBS``."""
    return Key(f"{JOBS}:in:{state}")


def of_owner(owner: str) -> Key:
    """Sorted set of the ids of the jobs that an API key started, like ``JOBS``."""
    return Key(f"{JOBS}:of:{owner}")


def job(job_id: str) -> Key:
    """Hash: specification, state, tasks, counters."""
    return Key(f"{PREFIX}job:{job_id}")


def shards(job_id: str) -> Key:
    """Stream of sealed shard manifests."""
    return Key(f"{job(job_id)}:shards")


def events(job_id: str) -> Key:
    """Capped stream of events."""
    return Key(f"{job(job_id)}:events")


def metrics(job_id: str) -> Key:
    """Capped stream of measured values."""
    return Key(f"{job(job_id)}:metrics")


def metrics_overview(job_id: str) -> Key:
    """Capped stream of the telling rows of each block of measured values."""
    return Key(f"{job(job_id)}:metrics:overview")


def metrics_open(job_id: str) -> Key:
    """Hash: of each task the rows of the block that is not full yet, and how many rows there were in all."""
    return Key(f"{job(job_id)}:metrics:open")


def student(job_id: str) -> Key:
    """Hash: the newest student snapshot."""
    return Key(f"{job(job_id)}:student")


def worker(name: str) -> Key:
    """Hash with a time to live: what a worker is and does."""
    return Key(f"{PREFIX}worker:{name}")


def model(model_id: str) -> Key:
    """Hash: what is known of an uploaded checkpoint."""
    return Key(f"{PREFIX}model:{model_id}")


def model_jobs(model_id: str) -> Key:
    """Set of the ids of jobs that were created with the model; some may be gone."""
    return Key(f"{model(model_id)}:jobs")


def idempotency(digest: str) -> Key:
    """Hash with a time to live: the job that a request with an Idempotency-Key made."""
    return Key(f"{PREFIX}idempotency:{digest}")


def of_job(job_id: str) -> list[Key]:
    """The keys that every job script takes, in the order in which the scripts name them."""
    return [job(job_id), events(job_id), queue(Role.SYNTHESIS), queue(Role.DISTILLATION), UNFINISHED, UNTIDY]
