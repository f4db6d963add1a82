"""Deleting jobs, and tidying up after the dead."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distiller.shard_cache import FOLDER_LOCK
from shared.broker import Broker, JobUnfinished, StudentSnapshot, keys
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import JobRecord, Role
from shared.storage import Storage, job_paths, scratch
from shared.worker.retention import delete_job, sweep
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job


@pytest.fixture
def ended(broker: Broker, storage: Storage) -> JobRecord:
    """A cancelled job with one shard that counts, one that does not, and working files."""
    job = broker.jobs.create(small_job(), idempotency_key="once")
    attempt = claim(broker)
    counted, orphan = manifest_of(attempt, 0), manifest_of(attempt, 1)
    for manifest in (counted, orphan):
        storage.put_bytes(b"tar", f"{job_paths.shards(job.id)}/{manifest.name}")
        storage.put_bytes(b"{}", f"{job_paths.shards(job.id)}/{manifest.sidecar_name}")
    storage.put_bytes(b"state", job_paths.checkpoint(job.id, attempt.task, 1, 0))
    broker.shards.announce(attempt, counted, {"name": "x"})
    broker.reports.report(attempt, EventType.EVALUATED, metrics={"loss": 1.0})
    broker.jobs.cancel(job.id)
    broker.leases.release(attempt, "job stopped")
    return broker.jobs.get(job.id)


def keys_of(broker: Broker, job: JobRecord) -> list[str]:
    return sorted(broker.redis.scan_iter(f"{keys.job(job.id)}*"))


def test_a_deleted_job_leaves_no_key_and_no_file(broker: Broker, storage: Storage, ended: JobRecord) -> None:
    delete_job(broker, storage, ended.id)

    left = set(broker.redis.scan_iter())
    assert left <= {keys.HEARD, keys.STATISTICS, keys.TIDY_AGAIN, *(keys.queue(role) for role in Role)}
    assert storage.list() == []
    with pytest.raises(KeyError):
        delete_job(broker, storage, ended.id)
    # The idempotency key went too, so it makes a new job.
    assert broker.jobs.create(small_job(), idempotency_key="once").id != ended.id


def test_a_job_that_a_living_worker_holds_is_not_deleted(broker: Broker, storage: Storage) -> None:
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    before = keys_of(broker, job)
    for _ in range(2):
        with pytest.raises(JobUnfinished):
            delete_job(broker, storage, job.id)
        if broker.jobs.get(job.id).state != "cancelling":
            broker.jobs.cancel(job.id)

    assert keys_of(broker, job) == before
    broker.leases.release(attempt, "job stopped")
    delete_job(broker, storage, job.id)


def test_a_deletion_that_was_cut_short_is_finished_by_the_next_sweep(
    broker: Broker, storage: Storage, ended: JobRecord
) -> None:
    broker.retention.delete(ended.id, lease_seconds=5)
    assert storage.list(job_paths.folder(ended.id)) != []

    sweep(broker, storage)

    assert storage.list() == []
    assert broker.retention.deleted() == []


def test_a_sweep_leaves_of_an_ended_job_what_counts_and_nothing_else(
    broker: Broker, storage: Storage, ended: JobRecord
) -> None:
    sweep(broker, storage)

    (manifest,) = broker.shards.manifests(ended.id)
    folder = job_paths.shards(ended.id)
    assert storage.list() == sorted([f"{folder}/{manifest.name}", f"{folder}/{manifest.sidecar_name}"])
    assert broker.retention.untidy() == []


def test_a_sweep_leaves_what_a_retry_goes_on_from(broker: Broker, storage: Storage) -> None:
    job = broker.jobs.create(small_job())
    synthesis, distiller = claim(broker), claim(broker, Role.DISTILLATION)
    manifest = manifest_of(synthesis, 0)
    shards = {f"{job_paths.shards(job.id)}/{name}" for name in (manifest.name, manifest.sidecar_name)}
    checkpoint = job_paths.checkpoint(job.id, synthesis.task, 1, 0)
    snapshot = job_paths.snapshot(job.id, 1, 10)
    superseded = [job_paths.checkpoint(job.id, synthesis.task, 1, 9), job_paths.snapshot(job.id, 1, 5)]
    for name in (*shards, checkpoint, snapshot, *superseded):
        storage.put_bytes(b"x", name)
    broker.shards.announce(synthesis, manifest, {"name": checkpoint})
    broker.snapshots.publish(distiller, StudentSnapshot(version=10, name=snapshot, sha256="0"))
    broker.leases.fail(distiller, UserError("bad", "x"))
    sweep(broker, storage)  # a worker has not let go yet
    assert set(superseded) <= set(storage.list())
    broker.leases.release(synthesis, "job stopped")

    sweep(broker, storage)

    assert set(storage.list()) == {*shards, checkpoint, snapshot}
    broker.jobs.retry(job.id)
    sweep(broker, storage, older_than_seconds=0)
    assert set(storage.list()) == {*shards, checkpoint, snapshot}


def test_a_retry_in_the_middle_of_a_sweep_loses_nothing(
    broker: Broker, storage: Storage, ended: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that goes on with the job writes, while the sweep of the ended job is under way."""
    name = ""

    def retry_and_write() -> None:
        nonlocal name
        broker.jobs.retry(ended.id)
        attempt = claim(broker)
        name = f"{job_paths.shards(ended.id)}/{manifest_of(attempt, 1).name}"
        storage.put_bytes(b"about to be announced", name)

    class Sweeping(Storage):
        def delete(self, name: str) -> None:
            if broker.jobs.get(ended.id).state.is_final:
                retry_and_write()
            super().delete(name)

    sweep(broker, Sweeping(storage.root))

    assert broker.jobs.get(ended.id).retries == 1
    assert storage.exists(name)
    broker.jobs.cancel(ended.id)
    assert broker.retention.untidy() == []  # its worker has it still
    assert name in storage.list()


def test_a_job_that_ended_again_during_its_sweep_is_swept_again(broker: Broker, ended: JobRecord) -> None:
    job = broker.retention.at_rest(ended.id, lease_seconds=5)
    assert job is not None
    broker.jobs.retry(ended.id)
    broker.jobs.cancel(ended.id)
    broker.retention.is_tidy(job)
    assert broker.retention.untidy() == [ended.id]


def test_a_sweep_touches_no_job_that_is_still_worked_on(broker: Broker, storage: Storage) -> None:
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    name = job_paths.checkpoint(job.id, attempt.task, 1, 0)
    storage.put_bytes(b"state", name)

    sweep(broker, storage, older_than_seconds=0)

    assert storage.list() == [name]


def test_one_of_many_sweeps_in_a_period(broker: Broker) -> None:
    assert [broker.retention.may_sweep(60) for _ in range(3)] == [True, False, False]


def test_consumers_of_gone_workers_are_forgotten_unless_they_hold_something(broker: Broker) -> None:
    broker.jobs.create(small_job())
    claim(broker, worker="holder")
    broker.leases.claim(Role.SYNTHESIS, "gone", block_seconds=0.01)

    assert broker.retention.forget_consumers(idle_seconds=-1) >= 1

    consumers = broker.redis.xinfo_consumers(keys.queue(Role.SYNTHESIS), keys.GROUP)
    assert [consumer["name"] for consumer in consumers] == ["holder"]


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os; from shared.storage.scratch import Scratch; print(Scratch().path, flush=True); os.abort()"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    dead, living = Path(done.stdout.strip()), scratch.Scratch()
    assert dead.is_dir()

    assert scratch.remove_abandoned() == 0  # both are too young to tell
    assert scratch.remove_abandoned(older_than_seconds=-1) == 1

    assert (dead.exists(), living.path.exists()) == (False, True)
    living.close()
    assert not living.path.exists()


def test_a_cache_folder_is_never_taken_for_a_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its operator has called it: it has a lock of another name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caches = [tmp_path / name for name in ("dfkd-cache", "dfkd-scratch-cache")]
    for cache in caches:
        cache.mkdir()
        (cache / FOLDER_LOCK).touch()
        (cache / "entry").write_bytes(b"x")

    assert scratch.remove_abandoned(older_than_seconds=-1) == 0

    assert all((cache / "entry").exists() for cache in caches)


def test_what_a_worker_leaves_that_woke_up_after_the_end_goes_an_hour_later(
    broker: Broker, storage: Storage, ended: JobRecord
) -> None:
    sweep(broker, storage)
    before = storage.list()
    zombies = [f"{job_paths.shards(ended.id)}/zombie.tar", job_paths.staged_shard(ended.id, "zombie.tar")]
    for name in zombies:
        storage.put_bytes(b"late", name)
    sweep(broker, storage)
    assert set(storage.list()) == {*before, *zombies}

    an_hour_passes(broker)
    sweep(broker, storage)

    assert storage.list() == before
    assert broker.retention.due_again() == []


def test_files_of_a_deleted_job_that_come_back_go_an_hour_later(
    broker: Broker, storage: Storage, ended: JobRecord
) -> None:
    delete_job(broker, storage, ended.id)
    storage.put_bytes(b"late", job_paths.staged_shard(ended.id, "zombie.tar"))

    an_hour_passes(broker)
    sweep(broker, storage)

    assert storage.list() == []
    assert not (Path(storage.root) / job_paths.folder(ended.id)).exists()


def test_a_job_that_was_retried_meanwhile_keeps_its_files(broker: Broker, storage: Storage, ended: JobRecord) -> None:
    sweep(broker, storage)
    broker.jobs.retry(ended.id)
    staged = job_paths.staged_shard(ended.id, "new.tar")
    storage.put_bytes(b"new", staged)

    an_hour_passes(broker)
    sweep(broker, storage)

    assert staged in storage.list()


def an_hour_passes(broker: Broker) -> None:
    for job_id in broker.redis.zrange(keys.TIDY_AGAIN, 0, -1):
        broker.redis.zincrby(keys.TIDY_AGAIN, -3601, job_id)
