"""How far synthesis may be ahead, and what it does then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.storage import Storage
from shared.worker.turn import Turn, TurnYielded
from synth_service.synthesis import pacing
from synth_service.synthesis.pacing import Backpressure
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim, fall_silent
from tests.specs import small_job
from tests.turns import turn_at


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job(synthesis={"max_backlog": 2}))


@pytest.fixture
def turn(job: JobRecord, broker: Broker, storage: Storage) -> Iterator[Turn]:
    with turn_at(claim(broker), broker, storage) as turn:
        yield turn


def announce(turn: Turn, *indices: int) -> None:
    for index in indices:
        turn.broker.shards.announce(turn.attempt, manifest_of(turn.attempt, index), {})


def wait(turn: Turn, pending: int = 0) -> None:
    Backpressure(turn, lambda _: None).wait(lambda: pending)


def types(turn: Turn) -> list[str]:
    return [event.type for event in turn.broker.reports.events(turn.attempt.job_id)]


def test_synthesis_goes_on_while_few_shards_wait(turn: Turn) -> None:
    announce(turn, 0)

    wait(turn)

    assert "synthesis_paused" not in types(turn)


def test_synthesis_waits_until_the_distiller_has_consumed(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = claim(turn.broker, Role.DISTILLATION)
    announce(turn, 0, 1)
    monkeypatch.setattr(pacing, "YIELD_SECONDS", 0.0)
    turn.broker.jobs.create(small_job())  # which does not get the worker: this job has a distiller

    def consume(_: float) -> None:
        turn.broker.shards.consumed(distiller, shards=1, images=16)

    monkeypatch.setattr(turn, "pause", consume)
    wait(turn)

    assert types(turn)[-2:] == ["synthesis_paused", "synthesis_resumed"]


def test_shards_that_are_not_announced_yet_count_as_well(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = claim(turn.broker, Role.DISTILLATION)
    announce(turn, 0, 1)
    turn.broker.shards.consumed(distiller, shards=2, images=32)
    paused: list[float] = []
    left = [2, 2, 1]
    monkeypatch.setattr(turn, "pause", paused.append)

    Backpressure(turn, lambda _: None).wait(lambda: left.pop(0) if len(left) > 1 else left[0])

    assert len(paused) == 2


def test_without_a_distiller_another_task_gets_the_worker(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(turn, 0, 1)
    turn.broker.jobs.create(small_job())
    monkeypatch.setattr(pacing, "YIELD_SECONDS", 0.0)

    with pytest.raises(TurnYielded):
        wait(turn)


def test_a_distiller_that_fell_silent_is_none(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = claim(turn.broker, Role.DISTILLATION)
    announce(turn, 0, 1)
    fall_silent(turn.broker, distiller, 2 * turn.broker.leases.lease_seconds)
    turn.broker.jobs.create(small_job())
    monkeypatch.setattr(pacing, "YIELD_SECONDS", 0.0)

    with pytest.raises(TurnYielded):
        wait(turn)


def test_in_lockstep_each_shard_is_announced_and_consumed_before_the_next(
    broker: Broker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockstep = {"pacing": "lockstep", "steps": None, "steps_per_batch": 5, "batch_size": 16, "warmup_batches": 0}
    broker.jobs.create(small_job(distillation=lockstep))
    waits: list[bool] = []
    paused: list[float] = []
    with turn_at(claim(broker), broker, storage) as turn:
        distiller = claim(broker, Role.DISTILLATION)
        announce(turn, 0)

        def consume(seconds: float) -> None:
            paused.append(seconds)
            broker.shards.consumed(distiller, shards=1, images=16)

        monkeypatch.setattr(turn, "pause", consume)
        Backpressure(turn, waits.append).wait(lambda: 0)

    assert waits[0] is True
    assert len(paused) == 1


@pytest.fixture
def awaiting(broker: Broker, storage: Storage) -> Iterator[Turn]:
    """A turn of a job on whose images another program trains."""
    broker.jobs.create(small_job(synthesis={"max_backlog": 2}, student=None, distillation="external"))
    with turn_at(claim(broker), broker, storage) as turn:
        yield turn


def test_synthesis_waits_for_the_program_that_trains(awaiting: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, job_id = awaiting.broker.shards, awaiting.attempt.job_id
    announce(awaiting, 0)
    wait(awaiting)
    assert "synthesis_paused" not in types(awaiting)
    announce(awaiting, 1)
    first = shards.read(job_id, "0")[0].position
    reports = ["0", "0", first]

    monkeypatch.setattr(awaiting, "pause", lambda _: shards.used_up(job_id, reports.pop(0)))
    wait(awaiting)

    assert reports == []
    assert types(awaiting)[-2:] == ["synthesis_paused", "synthesis_resumed"]
    monkeypatch.setattr(awaiting, "pause", lambda _: pytest.fail("one shard is behind, and two may be"))
    wait(awaiting)


def test_while_the_program_is_behind_another_task_gets_the_worker(
    awaiting: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(awaiting, 0, 1)
    awaiting.broker.jobs.create(small_job())
    monkeypatch.setattr(pacing, "YIELD_SECONDS", 0.0)

    with pytest.raises(TurnYielded, match="the program that trains is behind"):
        wait(awaiting)
