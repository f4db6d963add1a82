"""How a turn waits for its storage: as long as it takes, while heartbeats go on and a cancel is heard.

Only a store that goes on refusing the worker's credentials is not waited for without end: a rotation is over within
minutes, and what is still refused an hour later needs somebody, whom a failed job reaches and a waiting one may not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from shared.errors import UserError
from shared.events import EventType
from shared.jobs import JobError
from shared.storage.durable_files import is_full
from shared.storage.outages import StorageRefused

if TYPE_CHECKING:
    from shared.worker.turn import Turn

logger = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0


class StorageHold:
    """What a turn does while its storage is full or away. Threads of the work wait here as well."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._told: EventType | None = None
        self._refused_since: float | None = None

    def failed(self, error: OSError, times: int) -> None:
        """Pauses, longer each time. Raises as ``Turn.check``, or UserError when it has been refused for too long."""
        self.tell(error)
        self._turn.pause(min(FIRST_PAUSE_SECONDS * 2.0 ** (times - 1), LONGEST_PAUSE_SECONDS))
        if not isinstance(error, StorageRefused):
            self._refused_since = None
            return
        moment = time.monotonic()
        since = self._refused_since = moment if self._refused_since is None else self._refused_since
        limit = self._turn.settings.storage_refusal_seconds
        if limit and moment - since >= limit:
            raise UserError(
                "storage_refused", f"{error}. That lasted for {limit:.0f} s; retry the job once it is mended"
            )

    def tell(self, error: OSError) -> None:
        """Tells the job once."""
        if is_full(error):
            event, what, remedy = EventType.STORAGE_FULL, "the storage or the temporary folder is full", "there is room"
            self._turn.make_room()
        else:
            event, what, remedy = EventType.STORAGE_UNAVAILABLE, "the storage is away", "it is back"
        if self._told is not event:
            self._told = event
            message = f"{what} ({error}); the work goes on once {remedy}"
            logger.warning(str(event), error=str(error))
            told = JobError(code=str(event), message=message, stage=self._turn.attempt.task.role)
            self._turn.broker.reports.show_error(self._turn.attempt, told)
            self._turn.report(event, {"message": message})

    def is_over(self) -> None:
        """Takes back what was told."""
        self._refused_since = None
        if self._told is not None:
            self._told = None
            logger.info("storage_is_back")
            self._turn.broker.reports.show_error(self._turn.attempt, None)
