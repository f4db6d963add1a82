"""A real S3 server behind a proxy that fails: every call comes to an end, and says what happened."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.storage import Storage, StorageUnavailable, object_store, s3_driver
from shared.storage.outages import StorageRefused
from tests.chaos.object_proxy import ObjectProxy, Trouble
from tests.s3 import BUCKET
from tests.waiting import assert_within

MEGABYTES = bytes(6_000_000)
"""More than the buffers of a connection hold: to send it, somebody has to read."""


@pytest.fixture
def proxy(s3_server: str) -> Iterator[ObjectProxy]:
    proxy = ObjectProxy(int(s3_server.rpartition(":")[2]), random.Random(0))
    yield proxy
    proxy.close()


@pytest.fixture
def troubled(store: Storage, proxy: ObjectProxy, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The same through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    return Storage(store.root)


@pytest.mark.parametrize("write", ["put_bytes", "put_file"])
def test_an_upload_that_nobody_takes_comes_to_an_end(
    troubled: Storage, store: Storage, proxy: ObjectProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setattr(s3_driver, "REQUEST_SECONDS", 5.0)
    monkeypatch.setattr(s3_driver, "SLOWEST_BYTES_PER_SECOND", 6_000_000)
    local = tmp_path / "local"
    local.write_bytes(MEGABYTES)
    writes: dict[str, Callable[[], None]] = {
        "put_bytes": lambda: troubled.put_bytes(MEGABYTES, "a"),
        "put_file": lambda: troubled.put_file(local, "a"),
    }
    proxy.strike(Trouble.HANG)
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match="no answer to put_object within 6 s"):
        writes[write]()
    assert_within(time.monotonic() - started, 30)
    proxy.restore()
    writes[write]()
    assert store.read_bytes("a") == MEGABYTES


def test_many_bytes_go_in_parts(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", 5 * 1024 * 1024)
    data = random.Random(0).randbytes(12_000_000)
    store.put_bytes(data, "a")
    assert store.read_bytes("a") == data


def test_a_folder_of_which_the_store_keeps_objects_is_not_called_deleted(
    troubled: Storage, store: Storage, proxy: ObjectProxy
) -> None:
    for name in ("jobs/a/one", "jobs/a/two"):
        store.put_bytes(b"x", name)
    proxy.strike(Trouble.KEEP_OBJECTS)
    with pytest.raises(StorageUnavailable, match="kept 2 of 2 objects"):
        troubled.delete_tree("jobs/a")
    proxy.restore()
    troubled.delete_tree("jobs/a")
    assert store.list() == []


@pytest.mark.parametrize("trouble", [Trouble.TRUNCATE, Trouble.RESET_DOWNLOAD])
def test_half_an_object_is_none(
    troubled: Storage, store: Storage, proxy: ObjectProxy, tmp_path: Path, trouble: Trouble
) -> None:
    store.put_bytes(MEGABYTES, "a")
    proxy.strike(trouble)
    for use in (lambda: troubled.read_bytes("a"), lambda: troubled.fetch("a", tmp_path / "fetched")):
        with pytest.raises(StorageUnavailable):
            use()
    assert list((tmp_path / "fetched").iterdir()) == []
    proxy.restore()
    assert troubled.read_bytes("a") == MEGABYTES


@pytest.mark.parametrize("trouble", [Trouble.LOSE_ANSWER, Trouble.RESET_UPLOAD])
def test_a_write_of_which_nothing_was_heard_can_be_repeated(
    troubled: Storage, store: Storage, proxy: ObjectProxy, trouble: Trouble
) -> None:
    store.put_bytes(b"staged", "work/a")
    writes: list[Callable[[], None]] = [
        lambda: troubled.put_bytes(b"x", "a"),
        lambda: troubled.move("work/a", "b"),
        lambda: troubled.delete("a"),
    ]
    for write in writes:
        proxy.strike(trouble)
        try:
            write()
        except StorageUnavailable:
            proxy.restore()
            write()
    assert {name: store.read_bytes(name) for name in store.list()} == {"b": b"staged"}


USES: dict[str, Callable[[Storage], object]] = {
    "exists": lambda storage: storage.exists("a"),
    "read_bytes": lambda storage: storage.read_bytes("a"),
    "put_bytes": lambda storage: storage.put_bytes(b"x", "a"),
    "list": lambda storage: storage.list(),
}


@pytest.mark.parametrize("trouble", [Trouble.DENY, Trouble.UNKNOWN_KEY])
def test_a_refusal_names_the_credentials(troubled: Storage, proxy: ObjectProxy, trouble: Trouble) -> None:
    proxy.strike(trouble)
    for use in USES.values():
        with pytest.raises(StorageRefused, match="AWS_ACCESS_KEY_ID"):
            use(troubled)


@pytest.mark.parametrize("trouble", [Trouble.SLOW_DOWN, Trouble.FAIL])
def test_an_overload_is_no_refusal(troubled: Storage, proxy: ObjectProxy, trouble: Trouble) -> None:
    proxy.strike(trouble)
    for use in USES.values():
        with pytest.raises(StorageUnavailable) as raised:
            use(troubled)
        assert not isinstance(raised.value, StorageRefused)


def test_a_process_without_credentials_says_so(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageRefused, match="AWS_ACCESS_KEY_ID"):
        Storage(f"s3://{BUCKET}/x").read_bytes("a")
