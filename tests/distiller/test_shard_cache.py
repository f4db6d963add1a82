"""The local cache of shards, against a real S3 server and with real processes."""

import hashlib
import multiprocessing
import os
import random
from pathlib import Path

import pytest
import s3fs

from distiller.shard_cache import FOLDER_LOCK, ShardCache
from shared.storage import Storage
from shared.storage.names import TEMPORARY_PREFIX
from tests.s3 import BUCKET

SIZE = 1000


@pytest.fixture
def store(s3_server: str, tmp_path: Path) -> Storage:
    return Storage(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cache(store: Storage, folder: Path, *, max_bytes: int = 10 * SIZE) -> ShardCache:
    return ShardCache(store, folder.parent / "scratch", folder=folder, max_bytes=max_bytes)


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def put(store: Storage, number: int) -> tuple[str, str]:
    """A shard's name and digest."""
    name = f"shards/{number}.tar"
    store.put_bytes(content(number), name)
    return name, hashlib.sha256(content(number)).hexdigest()


def read(cached: ShardCache, name: str, sha256: str | None = None) -> bytes:
    with cached.fetched(name, sha256=sha256) as path:
        return path.read_bytes()


def entries(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if path.name != FOLDER_LOCK), key=lambda path: path.stat().st_mtime
    )


def age(path: Path, seconds: float) -> None:
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_what_was_read_once_is_not_downloaded_again(store: Storage, folder: Path) -> None:
    name, digest = put(store, 1)
    cached = cache(store, folder)
    assert read(cached, name, digest) == content(1)
    store.delete(name)
    assert read(cached, name, digest) == content(1)
    assert read(cache(store, folder), name, digest) == content(1)


def test_a_dataset_without_a_known_digest_is_kept_until_the_object_changes(store: Storage, folder: Path) -> None:
    name, _ = put(store, 1)
    cached = cache(store, folder)
    assert read(cached, name) == content(1)
    (entry,) = entries(folder)
    age(entry, 100)
    before = entry.stat().st_mtime
    assert read(cached, name) == content(1)
    assert entry.stat().st_mtime > before  # it was used, and so is evicted later
    store.put_bytes(content(2), name)
    assert read(cached, name) == content(2)


def test_what_was_used_longest_ago_makes_room(store: Storage, folder: Path) -> None:
    shards = [put(store, number) for number in range(4)]
    cached = cache(store, folder, max_bytes=3 * SIZE)
    for place, (name, digest) in enumerate(shards[:3]):
        read(cached, name, digest)
        age(entries(folder)[-1], 100 - place)
    read(cached, *shards[0])
    read(cached, *shards[3])
    assert {path.read_bytes() for path in entries(folder)} == {content(0), content(2), content(3)}


def test_a_shard_in_use_stays_and_one_for_which_there_is_no_room_is_read_all_the_same(
    store: Storage, folder: Path
) -> None:
    first, second = put(store, 1), put(store, 2)
    cached = cache(store, folder, max_bytes=SIZE)
    with cached.fetched(first[0], sha256=first[1]) as held:
        assert read(cached, *second) == content(2)
        assert held.read_bytes() == content(1)
        assert entries(folder) == [held]
    assert read(cached, *second) == content(2)
    assert [path.read_bytes() for path in entries(folder)] == [content(2)]
    assert not list((folder.parent / "scratch").iterdir())


def test_a_shard_larger_than_the_limit_is_read_and_not_kept(store: Storage, folder: Path) -> None:
    name, digest = put(store, 1)
    assert read(cache(store, folder, max_bytes=SIZE - 1), name, digest) == content(1)
    assert entries(folder) == []


def test_a_rotten_copy_is_fetched_anew(store: Storage, folder: Path) -> None:
    name, digest = put(store, 1)
    cached = cache(store, folder)
    read(cached, name, digest)
    (entry,) = entries(folder)
    entry.write_bytes(b"rot" * 10)
    assert read(cached, name, digest) == content(1)
    assert [path.read_bytes() for path in entries(folder)] == [content(1)]


def test_a_shard_that_is_not_what_was_announced_reaches_the_reader_and_is_not_kept(
    store: Storage, folder: Path
) -> None:
    name, digest = put(store, 1)
    store.put_bytes(content(2), name)
    assert read(cache(store, folder), name, digest) == content(2)
    assert entries(folder) == []


def test_what_is_missing_is_file_not_found_and_leaves_nothing(store: Storage, folder: Path) -> None:
    cached = cache(store, folder)
    with pytest.raises(FileNotFoundError):
        read(cached, "shards/none.tar")
    with pytest.raises(FileNotFoundError), cached.fetched("shards/none.tar", sha256="0" * 64, size=SIZE):
        raise AssertionError
    assert not folder.exists() or entries(folder) == []


def test_a_killed_download_makes_room_and_a_running_one_does_not(store: Storage, folder: Path) -> None:
    folder.mkdir()
    abandoned = folder / f"{TEMPORARY_PREFIX}{'0' * 16}-{5 * SIZE}"
    abandoned.write_bytes(b"half")
    name, digest = put(store, 1)
    assert read(cache(store, folder, max_bytes=2 * SIZE), name, digest) == content(1)
    assert not abandoned.exists()
    assert len(entries(folder)) == 1


def test_files_of_others_in_the_folder_are_left_alone(store: Storage, folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_bytes(b"x" * 100 * SIZE)
    (folder / "sub").mkdir()
    shards = [put(store, number) for number in range(3)]
    for shard in shards:
        read(cache(store, folder, max_bytes=SIZE), *shard)
    assert (folder / "thesis.tex").stat().st_size == 100 * SIZE
    assert len(list(folder.glob("*-*"))) == 1


def test_a_folder_that_cannot_be_used_costs_only_the_cache(store: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    name, digest = put(store, 1)
    cached = ShardCache(store, tmp_path / "scratch", folder=tmp_path / "file" / "cache", max_bytes=10 * SIZE)
    assert read(cached, name, digest) == content(1)


def test_a_local_storage_needs_no_cache(tmp_path: Path, folder: Path) -> None:
    store = Storage(str(tmp_path / "storage"))
    name, digest = put(store, 1)
    with cache(store, folder).fetched(name, sha256=digest) as path:
        assert path == store.local_path(name)
    assert store.exists(name)
    assert not folder.exists()


def read_many(root: str, folder: Path, seed: int, shards: list[tuple[str, str]]) -> None:
    """A distiller: reads shards in an order of its own."""
    s3fs.S3FileSystem.clear_instance_cache()
    cached = ShardCache(Storage(root), folder.parent / f"scratch-{seed}", folder=folder, max_bytes=3 * SIZE)
    order = random.Random(seed)
    for _ in range(10):
        number = order.randrange(len(shards))
        assert read(cached, *shards[number]) == content(number)


def test_several_distillers_share_a_folder_that_never_exceeds_its_limit(store: Storage, folder: Path) -> None:
    shards = [put(store, number) for number in range(6)]
    folder.mkdir()
    spawn = multiprocessing.get_context("spawn")
    readers = [spawn.Process(target=read_many, args=(store.root, folder, seed, shards)) for seed in range(3)]
    for reader in readers:
        reader.start()
    seen = 0
    while any(reader.is_alive() for reader in readers):
        sizes: dict[int, int] = {}
        for path in list(folder.iterdir()):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_size  # an entry has two names for an instant
        seen = max(seen, sum(sizes.values()))
        readers[0].join(0.002)
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert 0 < seen <= 3 * SIZE
    assert not list(folder.glob(f"{TEMPORARY_PREFIX}*"))
