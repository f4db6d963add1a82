"""A file that does not count does not stay, and one that was replaced stays for a moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shared.broker import Attempt, Broker, LeaseLost
from shared.storage import Storage, job_paths
from shared.worker import work_files
from shared.worker.turn import Turn
from shared.worker.work_files import WorkFiles, encode, pointer_to
from tests.shared.broker.test_leases import claim
from tests.specs import small_job
from tests.turns import turn_at


@pytest.fixture
def attempt(broker: Broker) -> Attempt:
    broker.jobs.create(small_job())
    return claim(broker)


@pytest.fixture
def turn(attempt: Attempt, broker: Broker, storage: Storage) -> Iterator[Turn]:
    with turn_at(attempt, broker, storage) as turn:
        yield turn


def refuse() -> None:
    raise LeaseLost


def names(turn: Turn) -> list[str]:
    return turn.storage.list(job_paths.work(turn.attempt.job_id))


def publish(files: WorkFiles, turn: Turn, name: str, **more: str) -> str:
    path = f"{job_paths.work(turn.attempt.job_id)}/{name}"
    files.publish(
        path, write=lambda: turn.storage.put_bytes(b"x", path), fence=lambda: None, counted=lambda: True, **more
    )
    return path


def test_what_was_refused_is_removed(turn: Turn) -> None:
    paths = [f"{job_paths.work(turn.attempt.job_id)}/{name}" for name in "ab"]

    def write() -> None:
        for path in paths:
            turn.storage.put_bytes(b"x", path)

    with pytest.raises(LeaseLost):
        WorkFiles(turn).publish(
            *paths,
            write=write,
            fence=refuse,
            counted=lambda: False,
        )

    assert names(turn) == []


def test_what_counts_although_it_was_refused_stays(turn: Turn) -> None:
    """The answer to a first sending was lost on the way, and the second was refused."""
    path = f"{job_paths.work(turn.attempt.job_id)}/a"

    with pytest.raises(LeaseLost):
        WorkFiles(turn).publish(
            path, write=lambda: turn.storage.put_bytes(b"x", path), fence=refuse, counted=lambda: True
        )

    assert names(turn) == [path]


def test_what_may_count_stays(turn: Turn) -> None:
    path = f"{job_paths.work(turn.attempt.job_id)}/a"

    def vanish() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        WorkFiles(turn).publish(
            path, write=lambda: turn.storage.put_bytes(b"x", path), fence=vanish, counted=lambda: False
        )

    assert names(turn) == [path]


def test_what_was_replaced_is_deleted_in_time(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    files = WorkFiles(turn)
    first = publish(files, turn, "a")
    second = publish(files, turn, "b", instead_of=first)
    assert names(turn) == [first, second]

    monkeypatch.setattr(work_files, "KEPT_SECONDS", -1.0)
    third = publish(files, turn, "c", instead_of=second)
    turn.make_room()
    assert names(turn) == [first, second, third]  # in the order in which they were replaced
    monkeypatch.setattr(work_files, "KEPT_FILES", 0)
    turn.make_room()

    assert names(turn) == [third]


def test_files_of_earlier_attempts_go_but_those_in_use(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_files, "KEPT_FILES", 0)
    for name in ("old-1", "old-2", "other"):
        turn.storage.put_bytes(b"x", f"{job_paths.work(turn.attempt.job_id)}/{name}")
    folder = job_paths.work(turn.attempt.job_id)

    WorkFiles(turn).adopt((f"{folder}/old-",), in_use={f"{folder}/old-2", None})

    assert names(turn) == [f"{folder}/old-2", f"{folder}/other"]


def test_a_state_is_loaded_as_it_was_written_or_not_at_all(turn: Turn) -> None:
    name = f"{job_paths.work(turn.attempt.job_id)}/a"
    data = encode({"weights": torch.arange(3)})
    turn.storage.put_bytes(data, name)
    files = WorkFiles(turn)

    state = files.load(pointer_to(name, data))
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(3))

    turn.storage.put_bytes(data[:-1], name)
    assert files.load(pointer_to(name, data)) is None
    turn.storage.delete(name)
    assert files.load(pointer_to(name, data)) is None
    lost = [event for event in turn.broker.reports.events(turn.attempt.job_id) if event.type == "checkpoint_lost"]
    assert [event.data["name"] for event in lost] == [name, name]
