"""The loop around the work: however a turn ends, the broker is told the right thing."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from shared.broker import Broker, LeaseLost
from shared.errors import UserError
from shared.jobs import JobRecord, Role, State
from shared.settings import Settings
from shared.storage import Storage
from shared.worker import heartbeat, loop
from shared.worker.loop import Worker
from shared.worker.turn import Turn, TurnYielded
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job
from tests.waiting import wait_until


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    broker = Broker(redis_url, lease_seconds=60.0, max_attempts=2, retries=1)
    yield broker
    broker.close()


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job())


@pytest.fixture
def run(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[Turn], None]], Worker]]:
    """Runs a worker until its work has been called for the last time; ``work`` ends it with ``stop``."""
    monkeypatch.setattr(loop, "LONGEST_PAUSE_SECONDS", 0.01)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}

    def run(work: Callable[[Turn], None]) -> Worker:
        worker = Worker(Role.SYNTHESIS, work, broker=broker, storage=storage, settings=Settings(storage=storage.root))
        worker.run()
        return worker

    yield run
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def types(broker: Broker, job: JobRecord) -> list[str]:
    return [event.type for event in broker.reports.events(job.id)]


Run = Callable[[Callable[[Turn], None]], Worker]


def test_a_signal_gives_the_task_back_untouched(broker: Broker, job: JobRecord, run: Run) -> None:
    def work(turn: Turn) -> None:
        stop()
        turn.pause(10)

    run(work)

    assert types(broker, job)[-1] == "attempt_released"
    assert claim(broker).number == 2
    assert broker.workers.all() == []


def test_an_error_is_tried_again_and_fails_the_job_in_the_end(broker: Broker, job: JobRecord, run: Run) -> None:
    turns: list[int] = []

    def work(turn: Turn) -> None:
        turns.append(turn.attempt.number)
        if len(turns) == 2:
            stop()
        raise RuntimeError(f"number {len(turns)}")

    run(work)

    record = broker.jobs.get(job.id)
    assert (record.state, turns) == (State.FAILED, [1, 2])
    assert record.error is not None
    assert record.error.message == "RuntimeError: number 2"


def test_an_error_of_the_users_making_fails_the_job_at_once(broker: Broker, job: JobRecord, run: Run) -> None:
    def work(_: Turn) -> None:
        stop()
        raise UserError("bad_checkpoint", "teacher.checkpoint: foreign")

    run(work)

    record = broker.jobs.get(job.id)
    assert (record.state, record.error and record.error.code) == (State.FAILED, "bad_checkpoint")


def test_a_full_disk_costs_no_attempt(broker: Broker, job: JobRecord, run: Run) -> None:
    turns: list[int] = []

    def work(turn: Turn) -> None:
        turns.append(turn.attempt.number)
        if len(turns) == 5:
            stop()
            turn.check()
        raise OSError(errno.ENOSPC, "No space left on device")

    run(work)

    assert broker.jobs.get(job.id).state is State.RUNNING
    assert turns == [1, 2, 3, 4, 5]


def test_what_is_to_be_stored_waits_for_room_and_the_job_says_so(broker: Broker, job: JobRecord, run: Run) -> None:
    tries: list[int] = []

    def write() -> str:
        tries.append(len(tries))
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "stored"

    def work(turn: Turn) -> None:
        assert turn.persist(write) == "stored"
        stop()
        turn.check()

    run(work)

    assert len(tries) == 3
    assert types(broker, job).count("storage_full") == 1
    stage = broker.jobs.get(job.id).stages.synthesis
    assert stage is not None
    assert stage.error is None  # it was shown for as long as it held the work up


def test_a_worker_whose_task_was_taken_over_says_nothing_more(broker: Broker, job: JobRecord, run: Run) -> None:
    def work(turn: Turn) -> None:
        broker.leases.release(turn.attempt, "behind its back")
        assert claim(broker, worker="successor").number == 2
        stop()
        raise LeaseLost(turn.attempt)

    run(work)

    assert types(broker, job)[-2:] == ["attempt_released", "attempt_started"]


def test_a_worker_that_yields_takes_the_next_task_and_its_own_only_when_that_can_progress(
    broker: Broker, job: JobRecord, run: Run
) -> None:
    other = broker.jobs.create(small_job())
    taken: list[str] = []

    def work(turn: Turn) -> None:
        taken.append(turn.attempt.job_id)
        if turn.attempt.job_id == job.id:
            for index in range(turn.record.parsed_spec().synthesis.max_backlog):  # type: ignore[union-attr]
                turn.broker.shards.announce(turn.attempt, manifest_of(turn.attempt, index, images=1), {})
            raise TurnYielded("no distiller")
        stop()
        turn.check()

    run(work)

    assert taken == [job.id, other.id]
    assert broker.leases.claim(Role.SYNTHESIS, "another", block_seconds=0.01) is not None  # the other's
    assert broker.leases.claim(Role.SYNTHESIS, "another", block_seconds=0.01) is None


def test_local_folders_go_with_the_turn(broker: Broker, job: JobRecord, run: Run) -> None:
    folders = []

    def work(turn: Turn) -> None:
        folders.append(turn.scratch)
        (turn.scratch / "file").write_bytes(b"x")
        turn.broker.shards.announce(turn.attempt, manifest_of(turn.attempt, 0), {})
        stop()
        turn.check()

    run(work)

    assert [folder.exists() for folder in folders] == [False]


def test_a_busy_worker_stays_listed_with_its_job(
    broker: Broker, job: JobRecord, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    seen: list[dict[str, str]] = []

    def work(turn: Turn) -> None:
        (listed,) = broker.workers.all()
        broker.workers.forget(listed["name"])  # as if its entry had expired
        seen.extend(wait_until(broker.workers.all))
        stop()
        turn.check()

    run(work)

    assert [worker["job"] for worker in seen] == [job.id]
    assert broker.workers.all() == []


class OddDriverError(Exception):
    """As pynvml's: neither an OSError nor a RuntimeError."""


def test_a_worker_that_cannot_describe_itself_keeps_its_task(
    broker: Broker, job: JobRecord, storage: Storage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)

    def describe() -> dict[str, str | int | float]:
        raise OddDriverError("Unknown Error")

    def work(turn: Turn) -> None:
        def heard_at() -> float | None:
            stage = broker.jobs.get(job.id).stages.synthesis
            return stage.heartbeat_at if stage else None

        first = heard_at()
        wait_until(lambda: heard_at() != first)
        second = heard_at()
        wait_until(lambda: heard_at() != second)
        assert [worker["job"] for worker in broker.workers.all()] == [job.id]
        stop()
        turn.check()

    worker = Worker(
        Role.SYNTHESIS,
        work,
        broker=broker,
        storage=storage,
        settings=Settings(storage=storage.root),
        describe=describe,
    )
    worker.run()

    assert types(broker, job) == ["job_created", "attempt_started", "attempt_released"]


def test_the_task_of_a_worker_that_does_not_react_to_a_signal_is_given_back(
    broker: Broker, job: JobRecord, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a phase of minutes that asks for nothing. The process ends by itself some seconds later."""
    monkeypatch.setattr(heartbeat, "REACTION_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat, "STOPPING_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)

    def work(turn: Turn) -> None:
        stop()
        wait_until(lambda: types(broker, job)[-1] == "attempt_released")
        with pytest.raises(LeaseLost):
            turn.broker.shards.announce(turn.attempt, manifest_of(turn.attempt, 0), {})
        with pytest.raises(LeaseLost):
            turn.check()

    run(work)

    assert claim(broker).number == 2


def test_out_of_memory_before_anything_was_done_fails_the_job_with_the_field(
    broker: Broker, job: JobRecord, run: Run
) -> None:
    def work(_: Turn) -> None:
        stop()
        raise MemoryError

    run(work)

    record = broker.jobs.get(job.id)
    assert (record.state, record.error and record.error.code) == (State.FAILED, "out_of_memory")
    assert "synthesis.batch_size" in str(record.error)


def test_out_of_memory_in_the_middle_is_tried_again(broker: Broker, job: JobRecord, run: Run) -> None:
    def work(turn: Turn) -> None:
        turn.progress(4)
        stop()
        raise MemoryError

    run(work)

    assert broker.jobs.get(job.id).state is State.RUNNING
