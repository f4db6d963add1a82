"""How a turn waits for its storage: as long as it takes, while heartbeats go on and a cancel is heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from shared.events import EventType
from shared.jobs import JobError
from shared.storage.durable_files import is_full

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

    def failed(self, error: OSError, times: int) -> None:
        """Pauses, longer each time. Raises as ``Turn.check``."""
        self.tell(error)
        self._turn.pause(min(FIRST_PAUSE_SECONDS * 2.0 ** (times - 1), LONGEST_PAUSE_SECONDS))

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
        if self._told is not None:
            self._told = None
            logger.info("storage_is_back")
            self._turn.broker.reports.show_error(self._turn.attempt, None)
