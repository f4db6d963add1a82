"""What every rank of a distiller holds of a job, and does with it: networks, images, steps, measurements.

Nothing here decides and nothing is random that differs between ranks: all hold the same images, draw the same batches
and go on with the same student. The leader's calls are the followers' commands: each method first tells them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distiller.evaluation import Evaluator
from distiller.pool import ImagePool
from distiller.ranks import Ranks
from distiller.trainer import Trainer
from shared import seeds
from shared.settings import Settings
from shared.shards.reader import Samples
from shared.specs import JobSpec
from shared.tasks.base import Evaluation, Task


class Replica:
    """A student in training, with all that it is trained on.

    Args:
        spec: of a job that distils.
        teacher, student: on ``device``; the student as it starts.
        task: what both do.
        settings: of the deployment.
        device: where to compute.
        ranks: with whom.

    Raises:
        UserError: ``pool_does_not_fit``.
    """

    def __init__(
        self,
        spec: JobSpec,
        teacher: nn.Module,
        student: nn.Module,
        task: Task,
        *,
        settings: Settings,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        assert spec.distillation is not None
        ranks.tell("begin", payload=(spec.model_dump_json(), _on_host(teacher), _on_host(student)))
        self._spec = spec
        self._ranks = ranks
        self._device = device
        self._teacher = teacher
        self.task = task
        self.student = student
        self.trainer = Trainer(
            spec.distillation,
            student,
            teacher,
            task=task,
            input=spec.teacher.input,
            seed=spec.seed,
            device=device,
            precision=spec.precision,
            ranks=ranks,
        )
        self.pool = ImagePool(
            spec.distillation.pool_capacity,
            spec.teacher.input.shape,
            device,
            memory_bytes=settings.pool_memory_bytes,
            folder=settings.pool_folder,
            disk_bytes=settings.pool_disk_bytes,
        )
        if spec.synthesis is not None:
            self.pool.require_room(spec.synthesis.num_images)
        self._sampling = seeds.generator(spec.seed, seeds.SAMPLING)
        self.evaluator: Evaluator | None = None

    def measure_on(self, samples: Iterable[Samples], check: Callable[[], None] = lambda: None) -> None:
        """Takes the labelled images that students are measured on, and asks the teacher.

        Args:
            samples: see ``Evaluator``.
            check: raises when the attempt is to end.
        """
        assert self._spec.evaluation is not None
        if self._ranks.count > 1:
            samples = list(samples)
            self._ranks.tell("measure_on", payload=samples)
        self.evaluator = Evaluator(
            samples,
            self._teacher,
            task=self.task,
            input=self._spec.teacher.input,
            batch_size=self._spec.evaluation.batch_size,
            device=self._device,
            check=check,
            ranks=self._ranks,
        )

    def prepare(self, check: Callable[[], None] = lambda: None) -> None:
        """Gets everything ready for the first step; ``check`` raises when the attempt is to end."""
        self._ranks.tell("prepare")
        self.trainer.prepare(check)

    def add(self, images: NDArray[np.uint8], persist: Callable[[Callable[[], None]], None]) -> None:
        """Puts images (N, C, H, W) into the pool.

        Args:
            images: of one shard.
            persist: calls what it is given until the disk has room.
        """
        self._ranks.tell("add", payload=images)
        persist(lambda: self.pool.add(torch.from_numpy(images)))

    def skip(self, count: int) -> None:
        """Counts images that have given way already; see ``ImagePool.skip``."""
        self._ranks.tell("skip", count)
        self.pool.skip(count)

    def steps(self, count: int) -> None:
        """So many steps."""
        self._ranks.tell("steps", count)
        with self._ranks.together():
            for _ in range(count):
                self.trainer.step(self.pool.sample(self.trainer.images_from_shards, self._sampling))
            self.trainer.settle()

    def evaluate(self) -> Evaluation:
        """Measures the student as it is; ``measure_on`` was called before."""
        assert self.evaluator is not None
        self._ranks.tell("evaluate")
        return self.evaluator.evaluate(self.student)

    def state_dict(self) -> dict[str, Any]:
        """What a successor needs besides the images."""
        return {
            "trainer": self.trainer.state_dict(),
            "pool": self.pool.state_dict(),
            "sampling": self._sampling.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken, once the pool has its images again."""
        state = {name: state[name] for name in ("trainer", "pool", "sampling")}
        self._ranks.tell("load", payload=state)
        self.trainer.load_state_dict(state["trainer"])
        self.pool.load_state_dict(state["pool"])
        self._sampling.set_state(state["sampling"])

    def close(self) -> None:
        """Gives up what is held outside of memory."""
        self.pool.close()


def _on_host(network: nn.Module) -> dict[str, Any]:
    # Extra state of a module of the user's own may be anything.
    state = network.state_dict()
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
