"""No half-written object is ever there: uploads that are slow, or whose process is killed, against a real S3 server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from shared.storage import Storage
from tests.chaos.proxy import Proxy
from tests.s3 import BUCKET
from tests.waiting import wait_until

SIZE = 20_000_000
NAME = "jobs/shards/large.tar"


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    proxy = Proxy(int(s3_server.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.fixture
def half_uploaded(store: Storage, s3_server: str, proxy: Proxy, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of an upload that does not get on."""
    large = tmp_path / "large.tar"
    large.write_bytes(b"shard" * (SIZE // 5))
    code = (
        "import sys; from pathlib import Path; from shared.storage import Storage;"
        "Storage(sys.argv[1]).put_file(Path(sys.argv[2]), sys.argv[3])"
    )
    address = f"http://127.0.0.1:{proxy.port}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, store.root, large, NAME],
        env={**os.environ, "AWS_ENDPOINT_URL": address},
    )
    server = boto3.client("s3", endpoint_url=s3_server)

    def has_begun() -> bool:
        uploads = server.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return any(upload["Key"].startswith(tmp_path.name) for upload in uploads)

    wait_until(has_begun, timeout=30)
    proxy.freeze()
    assert process.poll() is None
    yield process
    process.kill()
    process.wait()


def test_an_upload_is_invisible_until_it_is_whole(
    half_uploaded: subprocess.Popen[bytes], store: Storage, proxy: Proxy
) -> None:
    assert not store.exists(NAME)
    assert store.list() == []
    proxy.restore()
    assert half_uploaded.wait(timeout=60) == 0
    assert store.size(NAME) == SIZE


def test_an_upload_whose_process_was_killed_never_appears(
    half_uploaded: subprocess.Popen[bytes], store: Storage, proxy: Proxy
) -> None:
    half_uploaded.kill()
    half_uploaded.wait()
    proxy.restore()
    proxy.cut()
    assert not store.exists(NAME)
    assert store.list() == []
