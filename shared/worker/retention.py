"""Deleting jobs, and tidying up after processes that could not do so themselves.

A job is deleted in two steps of which the first decides: its keys go in one script, which notes the id, and
from then on nobody can see or touch the job; then its folder goes. A crash in between leaves the note, and
whoever sweeps next finishes. ``sweep`` also removes what killed workers left: working files of jobs that
have ended (but for the newest checkpoints of those that may be retried), shards that never counted, unfinished
files, consumers of the queues. Idle workers sweep, one of them a minute. An hour later a job that has ended or is gone
is looked at once more, for what a worker left that was presumed dead and woke up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from shared.broker import Broker
from shared.broker.retention import AtRest
from shared.storage import Storage, job_paths, scratch

logger = structlog.get_logger()

SWEEP_SECONDS = 60.0
UNFINISHED_FILES_SECONDS = 3600.0
"""Age of a temporary file that nobody can still be writing."""

CONSUMER_SECONDS = 3600.0


def delete_job(broker: Broker, storage: Storage, job_id: str) -> None:
    """Removes a finished job: keys, shards, student, everything.

    Raises:
        KeyError: there is no such job.
        JobUnfinished: it has not ended, or a worker is about to let go of it.

    When the storage fails, the job is gone for everybody all the same, and a sweep removes its files later.
    """
    broker.retention.delete(job_id, lease_seconds=broker.leases.lease_seconds)
    with _one_at_a_time(job_id):
        _delete_files(broker, storage, job_id)


def sweep(broker: Broker, storage: Storage, *, older_than_seconds: float = UNFINISHED_FILES_SECONDS) -> None:
    """Tidies up once. Every step can be repeated, by several processes at a time.

    Args:
        broker: of the deployment.
        storage: of the deployment.
        older_than_seconds: age from which an unfinished file counts as left by a killed process.
    """
    for job_id in broker.retention.deleted():
        with _one_at_a_time(job_id):
            _delete_files(broker, storage, job_id)
    for job_id in broker.retention.untidy():
        with _one_at_a_time(job_id):
            _tidy(broker, storage, job_id)
    for job_id in broker.retention.due_again():
        with _one_at_a_time(job_id):
            _tidy_again(broker, storage, job_id)
    storage.remove_stale_temporaries(older_than_seconds=older_than_seconds)
    broker.retention.forget_consumers(idle_seconds=CONSUMER_SECONDS)
    scratch.remove_abandoned()


@contextmanager
def _one_at_a_time(job_id: str) -> Iterator[None]:
    """A folder that cannot be touched keeps nobody from tidying the others; the next sweep tries again."""
    try:
        yield
    except OSError as error:
        logger.warning("job_not_tidied", job=job_id, error=str(error))


def _tidy(broker: Broker, storage: Storage, job_id: str) -> None:
    """Removes what an ended job has no use for. A retry may begin at any moment of it.

    So only files go that were there before the job was found to be at rest: later ones, under new names, are of the
    workers that go on with it. What they go on from stays, as long as the job has not succeeded.
    """
    listed_at = time.time()
    present = storage.list(job_paths.folder(job_id))
    job = broker.retention.at_rest(job_id, lease_seconds=broker.leases.lease_seconds)
    if job is None:
        return
    _clear(broker, storage, job, present)
    storage.remove_stale_temporaries(job_paths.folder(job_id), older_than_seconds=time.time() - listed_at)
    broker.retention.is_tidy(job)
    logger.info("job_tidied", job=job_id)


def _tidy_again(broker: Broker, storage: Storage, job_id: str) -> None:
    """The same a good while later, when whoever was presumed dead has woken up and written what it had in hand."""
    present = storage.list(job_paths.folder(job_id))
    job = broker.retention.at_rest(job_id, lease_seconds=broker.leases.lease_seconds)
    if job is not None:
        _clear(broker, storage, job, present)
    elif not broker.jobs.exists(job_id):
        storage.delete_tree(job_paths.folder(job_id))
    broker.retention.is_tidy_for_good(job_id)


def _clear(broker: Broker, storage: Storage, job: AtRest, present: Sequence[str]) -> None:
    """Removes what was there when an ended job was found to be at rest and what it has no use for."""
    job_id = job.id
    work, shards = f"{job_paths.work(job_id)}/", f"{job_paths.shards(job_id)}/"
    counted = {f"{shards}{name}" for each in broker.shards.manifests(job_id) for name in (each.name, each.sidecar_name)}
    for name in present:
        if name.startswith((work, shards)) and name not in counted | job.needed:
            storage.delete(name)


def _delete_files(broker: Broker, storage: Storage, job_id: str) -> None:
    storage.delete_tree(job_paths.folder(job_id))
    broker.retention.files_are_deleted(job_id)
    logger.info("job_deleted", job=job_id)
