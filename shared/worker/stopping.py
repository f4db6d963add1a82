"""Whether the process is to end: set by a signal handler, asked by every thread."""

from __future__ import annotations

import time

STOP_POLL_SECONDS = 0.1


class StopFlag:
    """Set once. ``threading.Event`` would not do: its lock is not reentrant, so a signal that arrives while the main
    thread is inside ``wait`` could deadlock in ``set``.
    """

    def __init__(self) -> None:
        self._set_at: float | None = None

    def set(self) -> None:
        """Asks to stop."""
        if self._set_at is None:
            self._set_at = time.monotonic()

    def is_set(self) -> bool:
        """Whether stopping was asked for."""
        return self._set_at is not None

    def seconds(self) -> float:
        """Since stopping was asked for; 0 as long as it was not."""
        return 0.0 if self._set_at is None else time.monotonic() - self._set_at

    def wait(self, seconds: float) -> None:
        """Waits that long, or until stopping is asked for."""
        until = time.monotonic() + seconds
        while not self.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, STOP_POLL_SECONDS))
