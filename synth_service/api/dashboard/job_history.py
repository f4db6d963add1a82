"""What the pages know of a job's streams, so that a look at an open page reads only what is new.

A job may have 10,000 events and as many shards. A page needs few of the former and only sums of the latter, but
would have to read all of them for it, every few seconds. So each process keeps a small digest of the jobs that
were looked at last and brings it up to date by reading on where it stopped.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, replace

from shared.broker import AnnouncedShard, Broker
from shared.events import EventType
from shared.jobs import Event

JOBS_KEPT = 32
NEWEST_EVENTS = 200
EVENT_BATCH = 1000
SHARD_BATCH = 500
EVENTS_READ_AT_ONCE = 3000
SHARDS_READ_AT_ONCE = 3000
"""Of more there are several looks in a row, so that no answer takes long: 10,000 cost a third of a second."""

SHARDS_PER_PAGE = 10
FREQUENT_EVENTS = frozenset({EventType.SHARD_SEALED, EventType.STUDENT_PUBLISHED, EventType.EVALUATED})
"""What happens all the time and says nothing of attempts; the timeline does without."""

MILESTONES_KEPT = 5000


@dataclass
class EventDigest:
    """The events of one job as a timeline and the start of a log need them."""

    milestones: deque[Event] = field(default_factory=lambda: deque(maxlen=MILESTONES_KEPT))
    """All but the frequent ones, oldest first."""
    newest: deque[str] = field(default_factory=lambda: deque(maxlen=NEWEST_EVENTS + 1))
    """Ids of the last events, oldest first."""
    count: int = 0
    is_complete: bool = True
    """Whether every event has been read; if not, the next look goes on."""

    @property
    def log_starts_after(self) -> str | None:
        """The event behind which the newest ``NEWEST_EVENTS`` begin; None when there are no more than these."""
        return self.newest[0] if len(self.newest) > NEWEST_EVENTS else None

    def read_on(self, broker: Broker, job_id: str) -> None:
        """Takes in what has happened since, or as much of it as one look may cost."""
        for _ in range(EVENTS_READ_AT_ONCE // EVENT_BATCH):
            after = self.newest[-1] if self.newest else None
            events = broker.reports.events(job_id, after=after, limit=EVENT_BATCH)
            self.count += len(events)
            self.newest.extend(event.id for event in events)
            self.milestones.extend(event for event in events if event.type not in FREQUENT_EVENTS)
            self.is_complete = len(events) < EVENT_BATCH
            if self.is_complete:
                return


@dataclass
class ShardDigest:
    """Sums over the shards of one job, and where in their stream each page of the shard table begins."""

    count: int = 0
    bytes: int = 0
    images: int = 0
    class_counts: Counter[int] = field(default_factory=Counter)
    page_starts: list[str] = field(default_factory=lambda: ["0"])
    """Position of the last shard before each page."""
    is_complete: bool = True
    """Whether every shard has been read."""
    damaged: int = 0
    """``shard_damaged`` events when reading began: a further one means that a shard which was counted is gone."""
    _last: str = "0"

    def read_on(self, broker: Broker, job_id: str) -> None:
        """Takes in the shards since, or as many as one look may cost."""
        for _ in range(SHARDS_READ_AT_ONCE // SHARD_BATCH):
            shards = broker.shards.read(job_id, self._last, count=SHARD_BATCH, block_seconds=0)
            for shard in shards:
                self._add(shard)
            self.is_complete = len(shards) < SHARD_BATCH
            if self.is_complete:
                return

    def _add(self, shard: AnnouncedShard) -> None:
        if self.count and self.count % SHARDS_PER_PAGE == 0:
            self.page_starts.append(self._last)
        manifest = shard.manifest
        self.count += 1
        self.bytes += manifest.bytes
        self.images += manifest.images
        self.class_counts.update(manifest.class_counts)
        self._last = shard.position


class JobHistory:
    """Digests of one job. Safe to use from several threads."""

    def __init__(self) -> None:
        self._events = EventDigest()
        self._shards = ShardDigest()
        self._lock = threading.Lock()

    def events(self, broker: Broker, job_id: str) -> EventDigest:
        """The events until now, as far as they have been read."""
        with self._lock:
            self._events.read_on(broker, job_id)
            return replace(self._events, milestones=self._events.milestones.copy(), newest=self._events.newest.copy())

    def shards(self, broker: Broker, job_id: str) -> ShardDigest:
        """The shards until now, as far as they have been read."""
        with self._lock:
            self._events.read_on(broker, job_id)
            damaged = sum(event.type == EventType.SHARD_DAMAGED for event in self._events.milestones)
            if damaged != self._shards.damaged:
                self._shards = ShardDigest(damaged=damaged)
            self._shards.read_on(broker, job_id)
            return replace(
                self._shards,
                class_counts=self._shards.class_counts.copy(),
                page_starts=self._shards.page_starts.copy(),
            )


class JobHistories:
    """The histories of the jobs that were looked at last, by id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, JobHistory] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, job_id: str) -> JobHistory:
        with self._lock:
            history = self._kept.setdefault(job_id, JobHistory())
            self._kept.move_to_end(job_id)
            while len(self._kept) > JOBS_KEPT:
                self._kept.popitem(last=False)
            return history
