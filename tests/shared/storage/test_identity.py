"""The marker in the storage root: an unmounted or a wrong volume is recognized and never called empty."""

from pathlib import Path

import pytest

from shared.broker import Broker
from shared.storage import Storage, StorageUnavailable
from shared.storage.identity import StorageIdentity
from shared.storage.names import MARKER
from tests.specs import small_job


def identity(broker: Broker, root: Path) -> tuple[Storage, StorageIdentity]:
    storage = Storage(str(root), create=False)
    return storage, StorageIdentity(storage, broker.storage_record)


@pytest.fixture
def root(tmp_path: Path, broker: Broker) -> Path:
    """The root of a deployment with a job, marked by its API."""
    root = tmp_path / "root"
    root.mkdir()
    storage, own = identity(broker, root)
    own.establish(in_empty_root=True)
    storage.put_bytes(b"weights", "teacher.pt")
    broker.jobs.create(small_job())
    return root


def test_the_marker_and_the_server_hold_one_id_and_no_listing_shows_it(broker: Broker, root: Path) -> None:
    assert (root / MARKER).read_text() == broker.storage_record.get()
    storage, own = identity(broker, root)
    own.establish(in_empty_root=False)
    assert storage.list() == ["teacher.pt"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("other.pt")


@pytest.mark.parametrize("mount_point", ["empty", "another deployment's"])
def test_a_file_is_not_missing_in_another_root(broker: Broker, root: Path, tmp_path: Path, mount_point: str) -> None:
    storage, own = identity(broker, root)
    own.compare()
    root.rename(tmp_path / "unmounted")
    root.mkdir()
    if mount_point != "empty":
        (root / MARKER).write_text("0" * 32)
    for use in (storage.read_bytes, storage.exists, storage.list, storage.delete, storage.delete_tree):
        with pytest.raises(StorageUnavailable, match="not the one of this deployment"):
            use("teacher.pt")
    with pytest.raises(StorageUnavailable):
        storage.put_bytes(b"x", "jobs/a")
    with pytest.raises(StorageUnavailable):
        storage.move("teacher.pt", "jobs/a/teacher.pt")
    for in_empty_root in (False, True):
        with pytest.raises(StorageUnavailable):
            own.establish(in_empty_root=in_empty_root)
    assert sorted(path.name for path in root.iterdir()) == ([] if mount_point == "empty" else [MARKER])


def test_a_root_that_is_gone_is_away_and_not_made(broker: Broker, root: Path, tmp_path: Path) -> None:
    _, own = identity(broker, tmp_path / "nothing")
    with pytest.raises(StorageUnavailable, match="gone"):
        own.establish(in_empty_root=True)
    assert not (tmp_path / "nothing").exists()


def test_a_server_without_jobs_takes_the_storage_it_is_given(broker: Broker, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        _, own = identity(broker, tmp_path / name)
        own.compare()
        own.establish(in_empty_root=True)
        assert (tmp_path / name / MARKER).read_text() == broker.storage_record.get()


def test_a_root_without_files_is_not_marked_by_a_worker_and_one_with_files_is(broker: Broker, tmp_path: Path) -> None:
    storage, own = identity(broker, tmp_path)
    own.establish(in_empty_root=False)
    assert list(tmp_path.iterdir()) == []
    assert broker.storage_record.get() is None
    storage.put_bytes(b"x", "teacher.pt")
    own.establish(in_empty_root=False)
    assert (tmp_path / MARKER).read_text() == broker.storage_record.get()


def test_what_is_right_is_learned_as_soon_as_the_server_knows(broker: Broker, root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    storage, _ = identity(broker, empty)  # never compared, as that of an API that began while the server was away
    with pytest.raises(StorageUnavailable):
        storage.exists("teacher.pt")
    unreachable = Broker("redis://127.0.0.1:1", retries=0)
    storage, _ = identity(unreachable, empty)
    assert not storage.exists("teacher.pt")
    unreachable.close()


def test_the_api_takes_a_folder_with_files_and_no_marker_and_a_worker_waits_for_that(
    broker: Broker, root: Path
) -> None:
    (root / MARKER).unlink()  # as a copy that left it out
    storage, of_a_worker = identity(broker, root)
    with pytest.raises(StorageUnavailable):
        of_a_worker.establish(in_empty_root=False)
    _, of_the_api = identity(broker, root)
    of_the_api.compare(adopts=True)
    of_a_worker.establish(in_empty_root=False)
    assert storage.exists("teacher.pt")
