"""The API as a process, for tests of what talks to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.waiting import wait_until


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment of the tests without the settings of whoever runs them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DFKD_", "REDIS_"))}
    return {**kept, "TERM": "dumb", "COLUMNS": "200", **variables}


def answers(url: str, path: str = "/readyz") -> bool:
    """Whether there is an answer, and it is 200."""
    try:
        return httpx.get(url + path, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@contextmanager
def serving(redis_url: str, storage: str, port: int, **variables: str) -> Iterator[str]:
    """Runs the API, with further settings; gives its URL."""
    url = f"http://127.0.0.1:{port}"
    environment = clean_environment(REDIS_URL=redis_url, DFKD_STORAGE=storage, DFKD_PORT=str(port), **variables)
    process = subprocess.Popen([sys.executable, "-m", "synth_service.api"], env=environment)
    try:
        wait_until(lambda: answers(url), timeout=60)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)
