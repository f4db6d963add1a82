"""A storage that is away is never taken for one in which a file is missing, whatever way it fails."""

import errno
import pickle
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs

from shared.storage import Storage, StorageUnavailable
from shared.storage.outages import will_pass
from tests.conftest import free_port
from tests.http_servers import served

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def s3_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Storage]]:
    """A storage on the object store that should listen on a port."""

    def at(port: int) -> Storage:
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        return Storage("s3://bucket/prefix")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield at
    s3fs.S3FileSystem.clear_instance_cache()


USES: dict[str, Callable[[Storage, Path], object]] = {
    "exists": lambda storage, _: storage.exists("models/teacher.pt"),
    "fetch": lambda storage, folder: storage.fetch("models/teacher.pt", folder),
    "read_bytes": lambda storage, _: storage.read_bytes("models/teacher.pt"),
    "size": lambda storage, _: storage.size("models/teacher.pt"),
    "list": lambda storage, _: storage.list("models"),
    "delete": lambda storage, _: storage.delete("models/teacher.pt"),
    "delete_tree": lambda storage, _: storage.delete_tree("models"),
    "put_bytes": lambda storage, _: storage.put_bytes(b"x", "models/teacher.pt"),
}


@pytest.mark.parametrize("use", USES)
def test_an_object_store_that_refuses_connections_says_nothing_of_a_file(
    s3_at: Callable[[int], Storage], tmp_path: Path, use: str
) -> None:
    with pytest.raises(StorageUnavailable):
        USES[use](s3_at(free_port()), tmp_path)


ANSWERS = [
    (403, "AccessDenied"),
    (400, "ExpiredToken"),
    (403, "InvalidAccessKeyId"),
    (500, "InternalError"),
    (503, "ServiceUnavailable"),
    (404, "NoSuchBucket"),
]


@pytest.mark.parametrize(("status", "code"), ANSWERS)
def test_an_answer_that_is_no_404_of_the_key_says_nothing_of_a_file(
    s3_at: Callable[[int], Storage], tmp_path: Path, status: int, code: str
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = answer  # noqa: N815 -- the library calls them so

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    with served(server):
        storage = s3_at(server.server_port)
        for use in ("exists", "fetch", "read_bytes"):
            with pytest.raises(StorageUnavailable):
                USES[use](storage, tmp_path)


def test_what_may_not_be_read_is_told_as_that() -> None:
    script = """
        import os, sys
        from pathlib import Path
        from shared.storage import Storage, StorageUnavailable
        root = Path(sys.argv[1])
        if os.getuid() == 0:  # who may read everything
            os.setgid(65534); os.setuid(65534)
        storage = Storage(str(root), create=False)
        for name in ("models/teacher.pt", "secret.pt"):
            for use in (storage.exists, storage.read_bytes, lambda name: storage.fetch(name, root)):
                try:
                    print(use(name))
                except StorageUnavailable as error:
                    assert "Permission denied" in str(error) and name in str(error), error
                else:
                    sys.exit("no error")
        try:
            storage.list("models")
        except StorageUnavailable:
            pass
        else:
            sys.exit("a folder that may not be listed looks empty")
        assert not storage.exists("other.pt")
    """
    # Not below pytest's own folder, which nobody else may enter.
    root = Path(tempfile.mkdtemp(prefix="dfkd-test-"))
    root.chmod(0o755)
    (root / "models").mkdir(parents=True)
    try:
        (root / "models" / "teacher.pt").write_bytes(b"x")
        (root / "secret.pt").write_bytes(b"x")
        (root / "models").chmod(0)
        (root / "secret.pt").chmod(0)
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), root], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL
        )
    finally:
        (root / "models").chmod(0o700)
        subprocess.run(["rm", "-rf", root], check=True)


class Outage:
    """A storage waits here until the test ends the outage."""

    def __init__(self, mend: Callable[[], object]) -> None:
        self.failures: list[OSError] = []
        self.ended = 0
        self._mend = mend

    def failed(self, error: OSError, times: int) -> None:
        self.failures.append(error)
        assert times == len(self.failures)
        if times == 3:
            self._mend()

    def is_over(self) -> None:
        self.ended += 1


def test_a_patient_storage_tries_until_it_is_back(tmp_path: Path) -> None:
    away, root = tmp_path / "away", tmp_path / "root"
    away.mkdir()
    (away / "file").write_bytes(b"content")

    def unmounted() -> None:
        if not root.is_dir():
            raise StorageUnavailable("not mounted")

    storage = Storage(str(root), create=False)
    storage.confirm = unmounted
    outage = Outage(lambda: shutil.move(away, root))
    assert storage.patient(outage).read_bytes("file") == b"content"
    assert (len(outage.failures), outage.ended) == (3, 1)
    with pytest.raises(FileNotFoundError):
        storage.patient(outage).read_bytes("other")


def test_a_patient_storage_waits_for_the_root_to_write_and_never_makes_it(tmp_path: Path) -> None:
    root = tmp_path / "root"

    def mount() -> None:
        assert not root.exists()
        root.mkdir()

    storage = Storage(str(root), create=False)
    with pytest.raises(StorageUnavailable, match="gone"):
        storage.put_bytes(b"x", "jobs/a/b")
    storage.patient(Outage(mount)).put_bytes(b"x", "jobs/a/b")
    assert storage.read_bytes("jobs/a/b") == b"x"


def test_what_lies_in_the_way_is_no_outage(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "jobs").write_bytes(b"a file where the folder should be")
    with pytest.raises(FileExistsError):
        storage.put_bytes(b"x", "jobs/a")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("jobs/a")


def test_a_moved_file_that_got_there_at_a_first_try_counts_as_moved(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    (tmp_path / "root" / "name").write_bytes(b"x")
    local = tmp_path / "local"
    with pytest.raises(FileNotFoundError):
        storage.put_file(local, "other", move=True)
    storage._files.put_file(local, "name", move=True)
    assert storage.read_bytes("name") == b"x"


def test_a_disk_in_trouble_passes_and_a_refusal_elsewhere_does_not() -> None:
    assert will_pass(OSError(errno.EIO, "Input/output error"))
    assert will_pass(OSError(errno.ESTALE, "Stale file handle"))
    assert will_pass(OSError(errno.ENOSPC, "No space left on device"))
    assert will_pass(pickle.loads(pickle.dumps(StorageUnavailable("away"))))
    assert not will_pass(PermissionError(errno.EACCES, "Permission denied"))
    assert not will_pass(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not will_pass(ValueError("no"))
