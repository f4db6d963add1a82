"""When a worker that cannot go on lets another task have its place.

Its own task is parked: nobody claims it until it can progress (see ``shared.broker.queues``). So two tasks that wait
for the other half never swap a worker between them, and a task that could progress gets one.
"""

from __future__ import annotations

import time

from shared.worker.turn import Turn

LOOK_SECONDS = 1.0


class YieldRule:
    """Counts the time that a turn waits.

    Args:
        turn: the attempt.
        patience_seconds: to wait before another task gets the worker; what the other half needs to begin.
    """

    def __init__(self, turn: Turn, patience_seconds: float) -> None:
        self._turn = turn
        self._patience_seconds = patience_seconds
        self._waits_since: float | None = None
        self._next_look = 0.0

    def goes_on(self) -> None:
        """The turn has something to do."""
        self._waits_since = None

    def is_over(self) -> bool:
        """Whether to yield, now that the turn waits. Asks the server once a second at most."""
        moment = time.monotonic()
        if self._waits_since is None:
            self._waits_since = moment
        if moment - self._waits_since < self._patience_seconds or moment < self._next_look:
            return False
        self._next_look = moment + LOOK_SECONDS
        return self._turn.broker.leases.has_waiting(self._turn.attempt)
