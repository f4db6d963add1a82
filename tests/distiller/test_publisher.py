"""What an attempt at a distillation leaves counts for its holder alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from distiller.publisher import Publisher
from shared.broker import Broker, LeaseLost
from shared.jobs import Role
from shared.storage import Storage, job_paths
from shared.storage.digests import file_sha256
from shared.worker.turn import Turn
from tests.shared.broker.test_leases import claim
from tests.specs import small_job
from tests.turns import turn_at


@pytest.fixture
def turn(broker: Broker, storage: Storage) -> Iterator[Turn]:
    broker.jobs.create(small_job())
    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as turn:
        yield turn


@pytest.fixture
def student() -> nn.Module:
    return nn.Linear(2, 2)


def lose_the_task(turn: Turn) -> None:
    turn.broker.leases.release(turn.attempt, "behind its back")
    assert claim(turn.broker, Role.DISTILLATION).number == 2


def work(turn: Turn) -> list[str]:
    return turn.storage.list(job_paths.work(turn.attempt.job_id))


def test_a_successor_goes_on_from_the_newest_checkpoint(turn: Turn, broker: Broker, storage: Storage) -> None:
    publisher = Publisher(turn)
    assert publisher.resume() is None
    for step in (5, 10):
        publisher.checkpoint({"step": torch.tensor(step)}, step=step, images_seen=0)
    broker.leases.release(turn.attempt, "worker stopping")

    with turn_at(claim(broker, Role.DISTILLATION), broker, storage) as successor:
        state = Publisher(successor).resume()

    assert state is not None
    assert int(state["step"]) == 10


def test_a_refused_checkpoint_leaves_no_file(turn: Turn) -> None:
    publisher = Publisher(turn)
    publisher.checkpoint({"step": torch.tensor(5)}, step=5, images_seen=0)
    before = work(turn)
    lose_the_task(turn)

    with pytest.raises(LeaseLost):
        publisher.checkpoint({"step": torch.tensor(10)}, step=10, images_seen=0)

    assert work(turn) == before


def test_a_version_of_the_student_is_published_once(turn: Turn, student: nn.Module) -> None:
    publisher = Publisher(turn)
    for version in (0, 0, 3):
        publisher.snapshot(student, version)

    newest = turn.broker.snapshots.newest(turn.attempt.job_id)
    assert newest is not None
    assert newest.version == 3
    types = [event.type for event in turn.broker.reports.events(turn.attempt.job_id)]
    assert types.count("student_published") == 2
    assert newest.name in work(turn)


def test_a_refused_snapshot_leaves_no_file(turn: Turn, student: nn.Module) -> None:
    publisher = Publisher(turn)
    lose_the_task(turn)

    with pytest.raises(LeaseLost):
        publisher.snapshot(student, 1)

    assert work(turn) == []
    assert turn.broker.snapshots.newest(turn.attempt.job_id) is None


def test_only_the_holder_replaces_the_finished_student(turn: Turn, student: nn.Module) -> None:
    publisher = Publisher(turn)
    written = publisher.student(student, 20)
    lose_the_task(turn)

    with torch.no_grad():
        student.weight.add_(1)  # type: ignore[operator]
    with pytest.raises(LeaseLost):
        publisher.student(student, 20)

    path = turn.storage.local_path(written["student"])
    assert path is not None
    assert file_sha256(path) == written["student_sha256"]
