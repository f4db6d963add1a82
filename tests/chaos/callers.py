"""Clients that go on asking the API while it, its server and its storage are in trouble.

Whatever goes wrong, it answers with what it knows or with 503, and it does so before long.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

import httpx

from tests.waiting import slowness

ROUTES: Final = (
    "/readyz",
    "/healthz",
    "/jobs",
    "/workers",
    "/jobs/{job}",
    "/jobs/{job}/shards",
    "/jobs/{job}/preview.png",
    "/jobs/{job}/grid.png",
    "/jobs/{job}/student",
    "/jobs/{job}/archive",
    "/ui/jobs/{job}",
)
AWAY: Final = (503, 507)

LONGEST_SECONDS: Final = 180.0
"""Of one answer: several calls of a storage that hangs, and each of these a minute."""

PAUSE_SECONDS: Final = 1.0


class Callers:
    """A thread that asks for one thing after the other. Use it as a context manager.

    Args:
        address: of the API.
        choice: what is asked for.
    """

    def __init__(self, address: str, choice: random.Random) -> None:
        self.problems: list[str] = []
        self.answers = 0
        self.longest_seconds = 0.0
        self._client = httpx.Client(base_url=address, timeout=LONGEST_SECONDS)
        self._random = choice
        self._jobs: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def ask_about(self, jobs: list[str]) -> None:
        """From now on."""
        self._jobs = jobs

    def __exit__(self, *_: object) -> None:
        """Returns when the last answer is there."""
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._ended.wait(PAUSE_SECONDS):
            if self._jobs:
                self._ask(self._random.choice(ROUTES).format(job=self._random.choice(self._jobs)))

    def _ask(self, path: str) -> None:
        started = time.monotonic()
        try:
            status = self._client.get(path).status_code
        except httpx.TimeoutException:
            self.problems.append(f"GET {path}: no answer within {LONGEST_SECONDS:.0f} s")
            return
        except httpx.TransportError:
            return  # the API was killed meanwhile, or broke off what it could not read to its end
        seconds = time.monotonic() - started
        self.answers += 1
        self.longest_seconds = max(self.longest_seconds, seconds)
        if status >= 500 and status not in AWAY:
            self.problems.append(f"GET {path}: {status}")
        if seconds > LONGEST_SECONDS * slowness():
            self.problems.append(f"GET {path}: answered after {seconds:.0f} s")
