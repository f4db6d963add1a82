"""The background shard writer: order, bounded memory, and no error that is lost or hangs."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from shared.shards.format import verify_shard
from shared.storage import Storage
from synth_service.synthesis import shard_writer
from synth_service.synthesis.shard_writer import ShardWriter
from tests.shared.samples import JOB, batch
from tests.waiting import wait_until


class GatedStorage(Storage):
    """A storage as slow as the test wants: each tar waits for the gate."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.gate = threading.Semaphore(0)

    def put_file(self, local: Path, name: str, *, move: bool = False) -> None:
        self.gate.acquire()
        super().put_file(local, name, move=move)


def writer(storage: Storage, scratch: Path, **options: Any) -> ShardWriter[str]:
    settings: dict[str, Any] = {"job": JOB, "partition": 0, "attempt": 1, "image_format": "png", **options}
    return ShardWriter(storage, "jobs/a/work/shards", scratch, **settings)


def test_shards_come_back_in_order_with_their_payload(storage: Storage, tmp_path: Path) -> None:
    with writer(storage, tmp_path / "scratch", clock=lambda: 7.0) as shards:
        for index in range(5):
            shards.submit(index, index * 4, [batch(4, seed=index)], f"state {index}")
        done = list(shards.sealed(block=True))
        assert list(shards.sealed(block=True)) == []
    assert [payload for _, payload in done] == [f"state {index}" for index in range(5)]
    assert [manifest.first_image for manifest, _ in done] == [0, 4, 8, 12, 16]
    assert {manifest.created_at for manifest, _ in done} == {7.0}
    for manifest, _ in done:
        path = storage.local_path(f"jobs/a/work/shards/{manifest.name}")
        assert path is not None
        verify_shard(path, manifest)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_shard_is_given_only_once_it_is_sealed(tmp_path: Path) -> None:
    storage = GatedStorage(str(tmp_path / "root"))
    with writer(storage, tmp_path / "scratch") as shards:
        shards.submit(0, 0, [batch(4)], "state")
        assert list(shards.sealed()) == []
        storage.gate.release()
        ((manifest, _),) = wait_until(lambda: list(shards.sealed()))
        assert storage.list() == [f"jobs/a/work/shards/{manifest.name}"]


def test_submit_waits_while_too_many_shards_are_unwritten(tmp_path: Path) -> None:
    storage = GatedStorage(str(tmp_path / "root"))
    with writer(storage, tmp_path / "scratch", max_waiting=1) as shards:
        submitted: list[int] = []

        def submit_all() -> None:
            for index in range(4):
                shards.submit(index, 0, [batch(2)], "")
                submitted.append(index)

        producer = threading.Thread(target=submit_all)
        producer.start()
        # One is in hand and one waits; the third cannot be handed over before the first is sealed.
        wait_until(lambda: len(submitted) == 2)
        producer.join(0.1)
        assert submitted == [0, 1]
        storage.gate.release()
        wait_until(lambda: len(submitted) == 3)
        storage.gate.release(3)
        producer.join()
        assert len(list(shards.sealed(block=True))) == 4


def test_an_error_arrives_after_the_shards_before_it_and_stays(storage: Storage, tmp_path: Path) -> None:
    shards = writer(storage, tmp_path / "scratch")
    shards.submit(0, 0, [batch(2)], "good")
    shards.submit(1, 2, [batch(2, channels=2)], "bad")
    received = []
    with pytest.raises(UserError):  # noqa: PT012 -- what came before the error is the point
        for _, payload in shards.sealed(block=True):
            received.append(payload)
    assert received == ["good"]
    with pytest.raises(UserError):
        list(shards.sealed(block=True))
    with pytest.raises(UserError):
        shards.submit(2, 4, [batch(2)], "later")
    shards.close()


def test_after_an_error_submit_never_hangs(storage: Storage, tmp_path: Path) -> None:
    shards = writer(storage, tmp_path / "scratch", max_waiting=1)
    with pytest.raises(UserError):  # noqa: PT012 -- which submit meets the error is a race, that one does is not
        for index in range(1000):
            shards.submit(index, 0, [batch(2, channels=2)], "")
    shards.close()


def test_an_error_in_the_block_gives_up_what_waits(tmp_path: Path) -> None:
    storage = GatedStorage(str(tmp_path / "root"))
    shards = writer(storage, tmp_path / "scratch", max_waiting=5)
    for index in range(5):
        shards.submit(index, 0, [batch(2)], "")
    closing = threading.Thread(target=shards.__exit__, args=(KeyError, KeyError(), None))
    closing.start()
    # The shard in hand is at the gate, which opens only once the rest is given up.
    wait_until(lambda: shards._abandoned.is_set())
    storage.gate.release(5)
    closing.join()
    assert len(list(shards.sealed(block=True))) <= 1
    with pytest.raises(RuntimeError, match="closed"):
        shards.submit(9, 0, [batch(2)], "")


def test_closing_finishes_what_was_submitted(storage: Storage, tmp_path: Path) -> None:
    shards = writer(storage, tmp_path / "scratch")
    shards.submit(0, 0, [batch(2)], "a")
    shards.submit(1, 2, [batch(2)], "b")
    shards.close()
    shards.close()
    assert [payload for _, payload in shards.sealed()] == ["a", "b"]


def test_a_failed_seal_leaves_no_local_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    (tmp_path / "root" / "jobs").write_bytes(b"a file where the folder should be")
    shards = writer(storage, tmp_path / "scratch")
    shards.submit(0, 0, [batch(2)], "")
    with pytest.raises(OSError, match="jobs"):
        list(shards.sealed(block=True))
    assert list((tmp_path / "scratch").iterdir()) == []
    shards.close()


class SmallStorage(Storage):
    """A storage without room until the test makes some."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.has_room = False

    def put_file(self, local: Path, name: str, *, move: bool = False) -> None:
        if not self.has_room:
            raise OSError(errno.ENOSPC, "No space left on device", name)
        super().put_file(local, name, move=move)


def test_a_full_storage_is_waited_for_and_the_caller_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "FULL_RETRY_SECONDS", 0.02)
    storage = SmallStorage(str(tmp_path / "root"))
    told: list[OSError | None] = []

    def make_room_once_told(full: OSError | None) -> None:
        told.append(full)
        storage.has_room = full is not None

    with writer(storage, tmp_path / "scratch", on_wait=make_room_once_told) as shards:
        for index in range(5):
            shards.submit(index, index * 4, [batch(4, seed=index)], str(index))
        done = list(shards.sealed(block=True))

    assert [manifest.index for manifest, _ in done] == [0, 1, 2, 3, 4]
    full = next(error for error in told if error is not None)
    assert full.errno == errno.ENOSPC


def test_a_wait_for_room_ends_when_the_caller_gives_up(tmp_path: Path) -> None:
    storage = SmallStorage(str(tmp_path / "root"))

    def give_up(full: OSError | None) -> None:
        if full is not None:
            raise InterruptedError

    with writer(storage, tmp_path / "scratch", on_wait=give_up) as shards:
        shards.submit(0, 0, [batch(4)], "")
        with pytest.raises(InterruptedError):
            list(shards.sealed(block=True))
        shards.close(abandon=True)

    assert storage.list() == []


def test_a_writer_that_is_given_up_leaves_nothing_that_was_not_fetched(storage: Storage, tmp_path: Path) -> None:
    """As of a worker that was frozen, and finds that another one has its task."""

    class Lost(Exception):
        pass

    def work() -> None:
        with writer(storage, tmp_path / "scratch") as shards:
            for index in range(3):
                shards.submit(index, 0, [batch(2)], "")
            wait_until(lambda: len(storage.list()) == 3)
            raise Lost

    with pytest.raises(Lost):
        work()

    assert storage.list() == []
