"""A storage that is away is waited for: no attempt is lost, nothing is missing, and nobody else's task is touched."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.broker import Attempt, Broker
from shared.jobs import JobRecord, Role, State, Task
from shared.settings import Settings
from shared.shards.format import SampleBatch, seal, stage, write_shard
from shared.shards.manifest import ShardManifest
from shared.storage import Storage, StorageUnavailable, job_paths
from shared.storage.outages import StorageRefused
from shared.worker import loop, quarantine, storage_hold, work_files
from shared.worker.loop import Worker
from shared.worker.quarantine import verify_all
from shared.worker.turn import Turn
from shared.worker.work_files import WorkFiles
from tests.shared.broker.test_leases import claim
from tests.specs import small_job
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(storage_hold, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(quarantine, "SECOND_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(work_files, "SECOND_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(loop, "STORAGE_POLL_SECONDS", 0.05)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job(distillation=None, student=None))


Work = Callable[[Turn], None]


def run(broker: Broker, storage: Storage, work: Work) -> None:
    Worker(Role.SYNTHESIS, work, broker=broker, storage=storage, settings=Settings(storage=storage.root)).run()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def away(storage: Storage) -> Path:
    """Unmounts the storage: an empty folder is left in its place."""
    there = Path(storage.root)
    elsewhere = there.with_name("elsewhere")
    there.rename(elsewhere)
    there.mkdir()
    return elsewhere


def back(storage: Storage, elsewhere: Path) -> None:
    Path(storage.root).rmdir()
    elsewhere.rename(storage.root)


def test_work_outlives_an_outage_and_the_stage_shows_it_meanwhile(
    broker: Broker, storage: Storage, job: JobRecord
) -> None:
    storage.put_bytes(b"weights", "teacher.pt")
    shown: list[str] = []

    def work(turn: Turn) -> None:
        elsewhere = away(storage)

        class Looking:
            """Ends the outage once the job shows it."""

            def __call__(self) -> None:
                stage = broker.jobs.get(job.id).stages.synthesis
                if stage is not None and stage.error is not None and not shown:
                    shown.append(stage.error.code)
                    back(storage, elsewhere)

        look, pause = Looking(), turn.pause

        def pause_and_look(seconds: float) -> None:
            pause(seconds)
            look()

        turn.pause = pause_and_look  # type: ignore[method-assign]
        assert turn.storage.read_bytes("teacher.pt") == b"weights"
        stage = broker.jobs.get(job.id).stages.synthesis
        assert stage is not None
        assert stage.error is None
        stop()
        turn.check()

    run(broker, storage, work)
    assert shown == ["storage_unavailable"]
    assert claim(broker).number == 2
    assert "attempt_failed" not in [event.type for event in broker.reports.events(job.id)]


def test_a_cancel_ends_the_wait(broker: Broker, storage: Storage, job: JobRecord) -> None:
    storage.put_bytes(b"weights", "teacher.pt")

    def work(turn: Turn) -> None:
        away(storage)
        broker.jobs.cancel(job.id)
        try:
            turn.storage.read_bytes("teacher.pt")
        finally:
            stop()

    broker.leases.lease_seconds = 0.2
    run(broker, storage, work)
    assert broker.jobs.get(job.id).state is State.CANCELLED


@pytest.mark.parametrize(("seconds", "state"), [(0.2, State.FAILED), (0, State.RUNNING), (60, State.RUNNING)])
def test_only_a_refusal_of_credentials_that_lasts_fails_the_job(
    broker: Broker, storage: Storage, job: JobRecord, seconds: float, state: State
) -> None:
    refusals = []
    until = time.monotonic() + 1.0

    def refuse() -> None:
        refusals.append(True)
        if time.monotonic() < until:
            raise StorageRefused("the storage refuses AWS_ACCESS_KEY_ID")

    def work(turn: Turn) -> None:
        try:
            turn.persist(refuse)
        finally:
            stop()
        turn.check()

    settings = Settings(storage=storage.root, storage_refusal_seconds=seconds)
    Worker(Role.SYNTHESIS, work, broker=broker, storage=storage, settings=settings).run()
    record = broker.jobs.get(job.id)
    assert record.state is state
    assert len(refusals) > 1
    if state is State.FAILED:
        assert record.error is not None
        assert record.error.code == "storage_refused"
        assert "AWS_ACCESS_KEY_ID" in record.error.message


def test_refusals_with_other_outages_between_them_do_not_add_up(
    broker: Broker, storage: Storage, job: JobRecord
) -> None:
    until = time.monotonic() + 0.6

    def trouble() -> None:
        if time.monotonic() < until:
            errors: list[type[StorageUnavailable]] = [StorageRefused, StorageUnavailable]
            raise errors[int(time.monotonic() * 10) % 2]("away")

    def work(turn: Turn) -> None:
        try:
            turn.persist(trouble)
        finally:
            stop()
        turn.check()

    settings = Settings(storage=storage.root, storage_refusal_seconds=0.3)
    Worker(Role.SYNTHESIS, work, broker=broker, storage=storage, settings=settings).run()
    assert broker.jobs.get(job.id).state is State.RUNNING


@pytest.mark.parametrize("error", [StorageUnavailable("away"), OSError(errno.ESTALE, "Stale file handle")])
def test_an_outage_that_the_work_does_not_wait_for_costs_no_attempt(
    broker: Broker, storage: Storage, job: JobRecord, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LONGEST_PAUSE_SECONDS", 0.01)
    attempts = []

    def work(turn: Turn) -> None:
        attempts.append(turn.attempt.number)
        if len(attempts) == 5:
            stop()
        raise error

    run(broker, storage, work)
    assert attempts == [1, 2, 3, 4, 5]
    assert broker.jobs.get(job.id).state is State.RUNNING


@pytest.mark.parametrize("mount_point", ["empty", "gone"])
def test_a_worker_whose_volume_is_not_mounted_takes_no_task(
    broker: Broker, storage: Storage, job: JobRecord, tmp_path: Path, mount_point: str
) -> None:
    storage.put_bytes(b"weights", "teacher.pt")

    def work(turn: Turn) -> None:
        stop()
        turn.check()

    run(broker, storage, work)  # of a worker that sees the files
    unmounted = tmp_path / "unmounted"
    if mount_point == "empty":
        unmounted.mkdir()
    worker = Worker(
        Role.SYNTHESIS,
        lambda turn: pytest.fail("took a task"),
        broker=broker,
        storage=Storage(str(unmounted), create=False),
        settings=Settings(storage=str(unmounted)),
    )
    looks: list[bool] = []
    has_storage = worker._has_storage

    def look() -> bool:
        looks.append(has_storage())
        if len(looks) == 3:
            stop()
        return looks[-1]

    worker._has_storage = look  # type: ignore[method-assign]
    worker.run()
    assert looks == [False, False, False]
    assert not unmounted.exists() or list(unmounted.iterdir()) == []
    assert claim(broker).number == 2


def test_whatever_a_sweep_meets_the_worker_lives(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []

    def sweep(*_: object) -> None:
        swept.append(True)
        stop()
        raise RuntimeError("a driver's own kind of error")

    monkeypatch.setattr(loop, "sweep", sweep)
    run(broker, storage, lambda turn: None)
    assert swept


def sealed(broker: Broker, storage: Storage, attempt: Attempt) -> ShardManifest:
    """A shard of 64 images, which counts."""
    images, labels = np.zeros((64, 1, 16, 16), np.uint8), np.arange(64) % 10
    batch = SampleBatch(images, labels, {"teacher_confidence": np.ones(64)}, 1, 0)
    path, manifest = write_shard(
        Path(storage.root).with_name("scratch"),
        [batch],
        job=attempt.job_id,
        partition=0,
        index=0,
        attempt=attempt.number,
        first_image=0,
        image_format="png",
        created_at=0.0,
    )
    stage(storage, "staging", path, manifest)
    seal(storage, "staging", job_paths.shards(attempt.job_id), manifest)
    broker.shards.announce(attempt, manifest, {"name": "x"})
    return manifest


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_shard_that_is_whole_at_the_second_look_stays(
    broker: Broker, storage: Storage, job: JobRecord, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(turn: Turn) -> None:
        manifest = sealed(broker, storage, turn.attempt)
        path = Path(storage.root, job_paths.shards(job.id), manifest.name)
        content = path.read_bytes()
        path.unlink() if how == "missing" else path.write_bytes(content[:1000])
        pause = turn.pause

        def pause_and_mend(seconds: float) -> None:
            pause(seconds)
            path.write_bytes(content)

        turn.pause = pause_and_mend  # type: ignore[method-assign]
        assert verify_all(turn, consumed=False)
        stop()
        turn.check()

    run(broker, storage, work)
    assert "shard_damaged" not in [event.type for event in broker.reports.events(job.id)]


def test_of_a_missing_shard_nothing_is_deleted(broker: Broker, storage: Storage, job: JobRecord) -> None:
    def work(turn: Turn) -> None:
        manifest = sealed(broker, storage, turn.attempt)
        folder = job_paths.shards(job.id)
        storage.delete(f"{folder}/{manifest.name}")
        assert not verify_all(turn, consumed=False)
        assert storage.list(folder) == [f"{folder}/{manifest.sidecar_name}"]
        stop()
        turn.check()

    run(broker, storage, work)
    assert "shard_damaged" in [event.type for event in broker.reports.events(job.id)]


def test_a_checkpoint_is_not_lost_while_the_storage_is_away(broker: Broker, storage: Storage, job: JobRecord) -> None:
    name = job_paths.checkpoint(job.id, Task(Role.SYNTHESIS, 0), 1, 0)
    data = work_files.encode({"rounds": 3})
    storage.put_bytes(data, name)

    def work(turn: Turn) -> None:
        elsewhere = away(storage)
        pause = turn.pause

        def pause_and_mend(seconds: float) -> None:
            pause(seconds)
            if elsewhere.exists():
                back(storage, elsewhere)

        turn.pause = pause_and_mend  # type: ignore[method-assign]
        assert WorkFiles(turn).load(work_files.pointer_to(name, data)) == {"rounds": 3}
        stop()
        turn.check()

    run(broker, storage, work)
    assert "checkpoint_lost" not in [event.type for event in broker.reports.events(job.id)]


def test_a_folder_that_cannot_be_removed_keeps_no_other_job_untidy(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.worker.retention import delete_job, sweep

    jobs = [broker.jobs.create(small_job()) for _ in range(2)]
    for each in jobs:
        storage.put_bytes(b"x", f"{job_paths.folder(each.id)}/file")
        broker.jobs.cancel(each.id)

    class Stuck(Storage):
        def delete_tree(self, prefix: str) -> None:
            if prefix == job_paths.folder(jobs[0].id):
                raise StorageUnavailable("Permission denied")
            super().delete_tree(prefix)

    stuck = Stuck(storage.root)
    for each in jobs:
        delete_job(broker, stuck, each.id)  # done for everybody, whatever becomes of the files
    assert storage.list() == [f"{job_paths.folder(jobs[0].id)}/file"]
    sweep(broker, stuck)
    sweep(broker, storage)
    assert wait_until(lambda: storage.list() == [])
    shutil.rmtree(storage.root)
