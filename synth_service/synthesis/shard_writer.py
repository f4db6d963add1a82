"""Writes shards beside the inversion: one thread encodes and seals while the next batches are made.

Shards leave in the order they came, each with whatever the caller handed in with it, such as the worker's
state at the end of that shard. So the caller can store the state and announce the shard, in order, from
its own thread; nothing here talks to Redis.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from shared.logs import in_this_context
from shared.shards.format import SampleBatch, stage, write_shard
from shared.shards.manifest import ImageFormat, ShardManifest
from shared.shards.reader import CLASS_NUMBERS
from shared.storage import Storage
from shared.storage.outages import will_pass
from shared.tasks.labels import LabelFormat

Payload = TypeVar("Payload")

WAIT_SECONDS = 0.2
"""How long the caller waits before ``on_wait`` is called."""

FULL_RETRY_SECONDS = 1.0


class ShardWriter(Generic[Payload]):
    """A background writer of one partition's shards. Use it as a context manager, from one thread.

    Args:
        storage: where shards go.
        staging: folder in it. What was written and not fetched goes when the writer is given up, so that nobody who
            was declared dead leaves anything behind.
        local_folder: where a shard is written first; on the disk of a local storage it is only renamed.
        job, partition, attempt: whose shards these are.
        image_format: of the image members.
        labels: how the targets are written.
        max_waiting: shards that may wait for the thread; ``submit`` blocks beyond. Bounds the memory.
        on_wait: called now and then in the caller's thread while that waits for the writer, with the error of a
            full storage while the writer itself waits for room; what it raises ends the wait.
        on_sealed: called in the writer's thread with the samples of each shard once it is sealed. Must not raise.
        clock: seconds since the epoch, for the manifests.
    """

    def __init__(
        self,
        storage: Storage,
        staging: str,
        local_folder: Path,
        *,
        job: str,
        partition: int,
        attempt: int,
        image_format: ImageFormat,
        labels: LabelFormat = CLASS_NUMBERS,
        max_waiting: int = 2,
        on_wait: Callable[[OSError | None], None] = lambda _: None,
        on_sealed: Callable[[Sequence[SampleBatch]], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._staging = staging
        self._local_folder = local_folder
        self._job = job
        self._partition = partition
        self._attempt = attempt
        self._image_format = image_format
        self._labels = labels
        self._on_wait = on_wait
        self._on_sealed = on_sealed
        self._clock = clock
        self._full: OSError | None = None
        self._waiting: queue.Queue[tuple[int, int, Sequence[SampleBatch], Payload] | None] = queue.Queue(max_waiting)
        self._sealed: queue.SimpleQueue[tuple[ShardManifest, Payload] | BaseException] = queue.SimpleQueue()
        self._unsealed = 0
        self._failure: BaseException | None = None
        self._abandoned = threading.Event()
        self._thread = threading.Thread(
            target=in_this_context(self._run), name=f"shard-writer-{job}-{partition}", daemon=True
        )
        self._thread.start()

    def submit(self, index: int, first_image: int, batches: Sequence[SampleBatch], payload: Payload) -> None:
        """Hand over one shard's samples; waits while ``max_waiting`` shards are unwritten.

        Args:
            index: of the shard in its partition.
            first_image: index of its first image in the partition.
            batches: its samples, not to be changed from here on.
            payload: comes back with the sealed shard, untouched.

        Raises:
            Exception: what stopped the thread, if something did.
        """
        if self._failure is not None:
            raise self._failure
        if not self._thread.is_alive():
            raise RuntimeError("the shard writer is closed")
        self._unsealed += 1
        while True:
            try:
                return self._waiting.put((index, first_image, batches, payload), timeout=WAIT_SECONDS)
            except queue.Full:
                self._on_wait(self._full)

    @property
    def pending(self) -> int:
        """Shards that were submitted and that ``sealed`` has not yielded yet."""
        return self._unsealed

    def sealed(self, *, block: bool = False) -> Iterator[tuple[ShardManifest, Payload]]:
        """The shards that were sealed since the last call, in the order of ``submit``.

        Args:
            block: wait for all that were submitted.

        Raises:
            Exception: what stopped the thread, after the shards that were sealed before it.
        """
        while self._unsealed:
            try:
                result = self._sealed.get(block=block, timeout=WAIT_SECONDS)
            except queue.Empty:
                if not block:
                    return
                self._on_wait(self._full)
                continue
            if isinstance(result, BaseException):
                self._sealed.put(result)  # nothing follows an error, so the next call meets it again
                raise result
            self._unsealed -= 1
            yield result

    def close(self, *, abandon: bool = False) -> None:
        """Stop the thread. What was sealed can still be fetched.

        Args:
            abandon: give up the shards that wait, at most finishing the one in hand.
        """
        if abandon:
            self._abandoned.set()
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
            if abandon:
                self._discard_unfetched()
            self._unsealed = self._sealed.qsize()

    def _discard_unfetched(self) -> None:
        storage = self._storage.impatient()
        while not self._sealed.empty():
            result = self._sealed.get()
            if isinstance(result, tuple):
                with suppress(OSError):  # it goes with the job
                    storage.delete(f"{self._staging}/{result[0].name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(abandon=error_type is not None)

    def _run(self) -> None:
        """The thread. After an error it only empties the queue, so that ``submit`` never hangs."""
        while (shard := self._waiting.get()) is not None:
            if self._failure is not None or self._abandoned.is_set():
                continue
            try:
                self._sealed.put(self._write_when_there_is_room(*shard))
                self._on_sealed(shard[2])
            except BaseException as error:
                self._failure = error
                self._sealed.put(error)

    def _write_when_there_is_room(
        self, index: int, first_image: int, batches: Sequence[SampleBatch], payload: Payload
    ) -> tuple[ShardManifest, Payload]:
        """Tries again while the storage is full: what was made by hours of work must not be lost to that."""
        while True:
            try:
                sealed = self._write(index, first_image, batches, payload)
            except OSError as error:
                if not will_pass(error) or self._abandoned.wait(FULL_RETRY_SECONDS):
                    raise
                self._full = error
            else:
                self._full = None
                return sealed

    def _write(
        self, index: int, first_image: int, batches: Sequence[SampleBatch], payload: Payload
    ) -> tuple[ShardManifest, Payload]:
        path, manifest = write_shard(
            self._local_folder,
            batches,
            job=self._job,
            partition=self._partition,
            index=index,
            attempt=self._attempt,
            first_image=first_image,
            image_format=self._image_format,
            created_at=self._clock(),
            labels=self._labels,
        )
        try:
            stage(self._storage, self._staging, path, manifest)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return manifest, payload
