"""A real S3 server process on loopback."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs

from tests.waiting import wait_until

BUCKET = "bucket"


@contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    """Address of a moto server with an empty bucket; the environment points at it while the block lasts."""
    log = folder / "moto.log"
    with log.open("w") as output:  # a file and not a pipe: a full pipe would stop the server
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = wait_until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), timeout=60)[0]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", address)
            environment.setenv("AWS_ACCESS_KEY_ID", "testing")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            environment.setenv("AWS_REGION", "us-east-1")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir(BUCKET)
            yield address
        s3fs.S3FileSystem.clear_instance_cache()
    finally:
        process.terminate()
        process.wait()
