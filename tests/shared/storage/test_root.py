"""Storage: confined, atomic, and the same on a local folder and against a real S3 server."""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import s3fs

from shared.storage import PathOutsideStorage, Storage, check_name
from shared.storage.names import TEMPORARY_PREFIX
from tests.s3 import BUCKET


def entries(folder: Path) -> list[str]:
    """Everything that lies in a folder, also what the storage would not list."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    request.getfixturevalue("s3_server")
    return Storage(f"s3://{BUCKET}/{tmp_path.name}")


def test_bytes_come_back(store: Storage) -> None:
    store.put_bytes(b"one", "jobs/a/file.bin")
    store.put_bytes(b"three", "jobs/a/file.bin")
    assert store.read_bytes("jobs/a/file.bin") == b"three"
    assert store.size("jobs/a/file.bin") == 5
    with store.open("jobs/a/file.bin") as file:
        file.seek(2)
        assert file.read(2) == b"re"


def test_a_file_is_copied_and_can_be_moved(store: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(b"x" * 100_000)
    store.put_file(local, "a/copied.bin")
    assert local.exists()
    store.put_file(local, "a/moved.bin", move=True)
    assert not local.exists()
    assert store.read_bytes("a/copied.bin") == store.read_bytes("a/moved.bin") == b"x" * 100_000


def test_a_fetched_file_is_local(store: Storage, tmp_path: Path) -> None:
    store.put_bytes(b"content", "a/b/c.bin")
    path = store.fetch("a/b/c.bin", tmp_path / "cache")
    assert path.read_bytes() == b"content"
    own = store.local_path("a/b/c.bin")
    assert path == (own or tmp_path / "cache" / "c.bin")


def test_only_files_exist(store: Storage) -> None:
    store.put_bytes(b"", "folder/empty")
    assert store.exists("folder/empty")
    assert store.read_bytes("folder/empty") == b""
    assert not store.exists("folder")
    assert not store.exists("folder/other")


@pytest.mark.parametrize("use", ["read_bytes", "open", "size", "fetch"])
def test_what_is_missing_is_file_not_found(store: Storage, tmp_path: Path, use: str) -> None:
    arguments = (tmp_path,) if use == "fetch" else ()
    with pytest.raises(FileNotFoundError):
        getattr(store, use)("no/such/file", *arguments)


def test_names_are_listed_sorted_and_below_the_folder_only(store: Storage) -> None:
    for name in ("a/2", "a/1", "a/b/3", "ab/4", "top"):
        store.put_bytes(b"", name)
    assert store.list("a") == ["a/1", "a/2", "a/b/3"]
    assert store.list() == ["a/1", "a/2", "a/b/3", "ab/4", "top"]
    assert store.list("missing") == []


def test_a_new_file_is_listed_at_once_although_another_process_wrote_it(store: Storage) -> None:
    assert store.list("a") == []
    Storage(store.root).put_bytes(b"", "a/1")
    assert store.list("a") == ["a/1"]
    assert store.exists("a/1")


def test_deleting_can_be_repeated(store: Storage) -> None:
    store.put_bytes(b"", "a/1")
    store.put_bytes(b"", "a/b/2")
    store.put_bytes(b"", "ab/3")
    store.delete("a/1")
    store.delete("a/1")
    assert store.list("a") == ["a/b/2"]
    store.delete_tree("a")
    store.delete_tree("a")
    assert store.list() == ["ab/3"]


def test_being_writable_leaves_nothing(store: Storage) -> None:
    store.check_writable()
    assert store.list() == []


BAD_NAMES = [
    "",
    "/etc/passwd",
    "..",
    "../secret",
    "a/../../secret",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\\..\\b",
    "a\0b",
    "a\nb",
    "file:///etc/passwd",
    "s3://other/bucket",
    "s3:other",
    "C:/windows",
    "simplecache::s3://other/x",
    "a/.tmp-1234",
    "x" * 256,
    "/".join(["x" * 200] * 6),
    "\ud800",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_plain_relative_path_is_refused(name: str, storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(PathOutsideStorage):
        check_name(name)
    for use in (storage.read_bytes, storage.exists, storage.delete, storage.local_path, storage.delete_tree):
        with pytest.raises(PathOutsideStorage):
            use(name)
    with pytest.raises(PathOutsideStorage):
        storage.put_bytes(b"", name)
    if name:  # an empty prefix is the whole storage
        with pytest.raises(PathOutsideStorage):
            storage.list(name)


@pytest.mark.parametrize("name", ["a", "jobs/job-1/shards/x-00.tar", "ünï/ço dé.bin", "a..b/..c", "..."])
def test_plain_names_pass(name: str, storage: Storage) -> None:
    assert check_name(name) == name
    storage.put_bytes(b"x", name)
    assert storage.list() == [name]


def test_a_symbolic_link_out_of_the_root_is_refused_and_one_inside_is_followed(
    storage: Storage, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    storage.put_bytes(b"fine", "models/teacher")
    root = Path(storage.root)
    (root / "out").symlink_to(secret)
    (root / "file-out").symlink_to(secret / "key")
    (root / "dangling").symlink_to(tmp_path / "not-there")
    (root / "inside").symlink_to(root / "models")
    assert storage.read_bytes("inside/teacher") == b"fine"
    for name in ("out/key", "file-out", "dangling", "out/new/deep"):
        with pytest.raises(PathOutsideStorage):
            storage.read_bytes(name)
        with pytest.raises(PathOutsideStorage):
            storage.put_bytes(b"x", name)
    assert entries(secret) == ["key"]


def test_deleting_a_tree_removes_links_and_leaves_their_targets(storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"")
    storage.put_bytes(b"", "a/1")
    (Path(storage.root) / "a" / "link").symlink_to(outside)
    storage.delete_tree("a")
    assert entries(Path(storage.root)) == []
    assert entries(outside) == ["file"]


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Storage(str(tmp_path / "link")).put_bytes(b"x", "a/b")
    assert (tmp_path / "real" / "a" / "b").read_bytes() == b"x"


def test_only_stale_temporaries_are_removed_and_none_is_listed(storage: Storage) -> None:
    storage.put_bytes(b"", "a/real")
    folder = Path(storage.root) / "a"
    for name, age in (("old", 1000), ("young", 10)):
        (folder / f"{TEMPORARY_PREFIX}{name}").write_bytes(b"half")
        os.utime(folder / f"{TEMPORARY_PREFIX}{name}", (time.time() - age,) * 2)
    grave = folder / f"{TEMPORARY_PREFIX}grave"
    grave.mkdir()
    (grave / "file").write_bytes(b"")
    os.utime(grave, (0, 0))
    assert storage.list() == ["a/real"]
    assert storage.remove_stale_temporaries(older_than_seconds=100) == 2
    assert entries(folder) == [f"{TEMPORARY_PREFIX}young", "real"]


def test_a_full_disk_leaves_neither_half_a_file_nor_a_temporary(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes(b"before", "a/file")
    (tmp_path / "large").write_bytes(b"x" * 200_000)
    script = f"""
        import resource
        from pathlib import Path
        from shared.storage import Storage
        storage = Storage({storage.root!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        for store in (
            lambda: storage.put_bytes(b"y" * 200_000, "a/file"),
            lambda: storage.put_bytes(b"y" * 200_000, "a/new"),
            lambda: storage.put_file(Path({str(tmp_path / "large")!r}), "a/copy"),
        ):
            try:
                store()
            except OSError:
                continue
            raise SystemExit("no error")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert entries(Path(storage.root) / "a") == ["file"]
    assert storage.read_bytes("a/file") == b"before"


def test_a_root_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="s3://"):
        Storage("gs://bucket")


def test_a_missing_root_is_made_only_when_asked(tmp_path: Path) -> None:
    absent = Storage(str(tmp_path / "no"), create=False)
    assert not (tmp_path / "no").exists()
    assert absent.list() == []
    assert (Storage(str(tmp_path / "yes")).free_bytes() or 0) > 0


def test_a_moved_file_crosses_disks(storage: Storage) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == Path(storage.root).stat().st_dev:
        pytest.skip("needs a second disk")
    with tempfile.TemporaryDirectory(dir=shared_memory, prefix="dfkd-test-") as elsewhere:
        local = Path(elsewhere, "local")
        local.write_bytes(b"far away")
        storage.put_file(local, "a/moved", move=True)
        assert storage.read_bytes("a/moved") == b"far away"
        assert not local.exists()


def test_storage_needs_neither_torch_nor_numpy_nor_pillow() -> None:
    modules = "shared.storage, shared.shards.manifest"
    script = f"import sys, {modules}; sys.exit(bool({{'torch', 'numpy', 'PIL'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_object_has_the_name_that_another_client_expects(s3_server: str) -> None:
    Storage(f"s3://{BUCKET}/direct/").put_bytes(b"content", "a/b")
    assert s3fs.S3FileSystem().cat(f"{BUCKET}/direct/a/b") == b"content"


def test_a_file_is_moved_at_once_and_only_once(storage: Storage) -> None:
    storage.put_bytes(b"x", "a/b")
    for _ in range(2):  # the second as after a lost answer
        storage.move("a/b", "c/d")

    assert storage.list() == ["c/d"]
    with pytest.raises(FileNotFoundError):
        storage.move("a/b", "e")
    with pytest.raises(PathOutsideStorage):
        storage.move("../a", "e")
