"""The images of a job while they are still being made, for a training loop of one's own::

    for images, targets in job.stream().batches(256):
        ...

Shards come in the order of their announcement, each held against its manifest. The next one is downloaded when the one
before has been used up, so a slow loop holds one shard at a time, and nothing piles up here. With ``distillation:
external`` the workers wait for the loop, too: the service is told of every shard that is used up. (Otherwise they wait
for the distiller of the job alone.) ``state_dict`` and ``load_state_dict`` let a loop that was interrupted continue
with the next image. ``dataset()`` is the same as a ``torch.utils.data.IterableDataset``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shared.jobs import JobRecord
from synth_service.client.errors import ApiError, JobNotSucceeded
from synth_service.wire import Shard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.utils.data import IterableDataset

    Image = NDArray[np.uint8]
    Target = NDArray[np.int64]

POLL_SECONDS: Final = 1.0
GONE: Final = 404


class JobStream:
    """An iterator over a job's images; each ``(image, target)`` is uint8 (C, H, W) and the target of the task.

    Args:
        get_job: asks for the job.
        next_shards: the shards after a position, as many as one answer holds.
        download: stores a shard under a path, verified.
        sleep: waits between looks.
        report: tells the service the id of a shard that is used up, like all before it; called where it waits for that.
        follow: wait for more until the job has ended; else stop at what there is.

    Raises:
        JobNotSucceeded: while iterating, once the job has failed or was cancelled, after its last image.
        ApiError, ServerUnreachable, DamagedDownload: as everywhere in the client.
    """

    def __init__(
        self,
        get_job: Callable[[], JobRecord],
        next_shards: Callable[[str | None], list[Shard]],
        download: Callable[[Shard, Path], None],
        sleep: Callable[[float], None],
        report: Callable[[str], object],
        *,
        follow: bool,
    ) -> None:
        self._get_job, self._next_shards, self._download, self._sleep = get_job, next_shards, download, sleep
        self._report = report
        self._follow = follow
        self._after: str | None = None
        self._used = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: to be stored with the checkpoint of the training loop."""
        return {"after": self._after, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the last image that the stream of this state gave."""
        self._after, self._used = state["after"], state["used"]

    def __iter__(self) -> Iterator[tuple[Image, Target]]:
        job = self._get_job()
        labels = _labels_of(job)
        is_awaited = job.spec.get("external") is True
        if is_awaited and self._after is not None:
            self._report(self._after)  # what interrupted the loop may have kept it from saying so
        while True:
            shards = self._next_shards(self._after)
            for shard in shards:
                yield from self._images_of(shard, labels)
                self._after, self._used = shard.id, 0
                if is_awaited:
                    self._report(shard.id)
            if shards:
                continue
            if job.state.is_final or not self._follow:
                break
            job = self._get_job()  # before the last look at the shards, so that none is missed
            if not job.state.is_final:
                self._sleep(POLL_SECONDS)
        if self._follow and job.state != "succeeded":
            raise JobNotSucceeded(job)

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Batches: images (N, C, H, W) and targets (N, …); the last one may be smaller.

        Raises:
            ValueError: the size is below 1.
        """
        import numpy as np

        if size < 1:
            raise ValueError(f"a batch of {size} images; give at least 1")
        images: list[Image] = []
        targets: list[Target] = []
        for image, target in self:
            images.append(image)
            targets.append(target)
            if len(images) == size:
                yield np.stack(images), np.stack(targets)
                images, targets = [], []
        if images:
            yield np.stack(images), np.stack(targets)

    def dataset(self) -> IterableDataset[tuple[Image, Target]]:
        """The same for a ``DataLoader``. Use no worker processes: each would download everything."""
        from torch.utils.data import IterableDataset

        stream = self

        class Streamed(IterableDataset[tuple["Image", "Target"]]):
            """Images of a job that may still be running."""

            def __iter__(self) -> Iterator[tuple[Image, Target]]:
                return iter(stream)

        return Streamed()

    def _images_of(self, shard: Shard, labels: Any) -> Iterator[tuple[Image, Target]]:
        from shared.shards.format import read_shard

        with tempfile.TemporaryDirectory(prefix="dfkd-stream-") as folder:
            path = Path(folder) / shard.name
            try:
                self._download(shard, path)
            except ApiError as error:
                if error.status == GONE:
                    return  # damaged, and set aside since: its images come again in another shard
                raise
            images, targets = read_shard(path, shard.manifest(), labels)
        for image, target in zip(images[self._used :], targets[self._used :], strict=True):
            self._used += 1
            yield image, target


def _labels_of(job: JobRecord) -> Any:
    """How the task of the job keeps labels in shards; found without torch."""
    from shared.tasks.descriptions import describe_task

    teacher = job.parsed_spec().teacher
    module, _, name = describe_task(teacher.task).labels.partition(":")
    return getattr(import_module(module), name)(teacher.num_classes, None)
