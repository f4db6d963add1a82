"""The API as a process with its own settings and a log that can be read."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import free_port
from tests.synth_service.api_process import answers, clean_environment
from tests.waiting import wait_until


@contextmanager
def running(log: Path, path: str = "/readyz", **variables: str) -> Iterator[str]:
    """Serves on a free port until the block ends; gives the URL. What the process says goes to the log."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "synth_service.api"],
            env=clean_environment(DFKD_PORT=str(port), **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: process.poll() is not None or answers(url, path), timeout=30)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)
