"""What a student is worth: how well it does its task on labelled images, and how often it agrees with the teacher.

The images are measured on and never trained on. The result is that of the student as handed in; nothing
here keeps a best over time, which would select on the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from distiller.ranks import Ranks
from shared.errors import UserError
from shared.networks.devices import explain_out_of_memory
from shared.networks.image_operations import Normalization, to_pixels
from shared.networks.modes import evaluating
from shared.shards.reader import Samples
from shared.specs import InputSpec
from shared.tasks.base import Evaluation, Task


class Evaluator:
    """Compares students with a teacher on a fixed set; the teacher is asked once, on construction.

    Networks run in float32 and eval mode, as a user will run them, and are left in the mode they came in.

    Args:
        samples: labelled images, each batch of one size; at least one image in all.
        teacher: normalized images (N, C, H, W) → what the task takes for logits; already on the device.
        task: what both networks do, and so what is measured.
        input: the teacher's normalization.
        batch_size: images per forward pass; ``evaluation.batch_size``.
        device: where to compute.
        check: called before each batch; what it raises ends the measuring, of which a large set has minutes.
        ranks: the processes that share the batches, all of which measure; None for this one alone.

    Raises:
        UserError: ``bad_evaluation_images``: there are none, or ``wrong_output_shape``.
    """

    def __init__(
        self,
        samples: Iterable[Samples],
        teacher: nn.Module,
        *,
        task: Task,
        input: InputSpec,
        batch_size: int,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        # Of several ranks none may leave the others in the middle.
        self._check = check if self.ranks.count == 1 else lambda: None
        self.task = task
        self.batch_size = batch_size
        self.device = device
        self.normalize = Normalization(input).to(device)
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []
        for batch in samples:
            images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.targets)
            for start in range(0, len(images), batch_size):
                part = images[start : start + batch_size]
                self._images.append(part.pin_memory() if device.type == "cuda" else part)
                self._labels.append(labels[start : start + batch_size].to(device))
        if not self._images:
            raise UserError("bad_evaluation_images", "evaluation.shards holds no images; at least one is needed")
        self._teacher_says = list(self._answers(teacher, "the teacher"))

    @property
    def images(self) -> int:
        """How many the set holds."""
        return sum(len(labels) for labels in self._labels)

    def evaluate(self, student: nn.Module) -> Evaluation:
        """Measure a student (on the device). Waits for the device once."""
        meter = self.task.meter(self.device)
        student_says = self._answers(student, "the student")
        for student_answers, teacher_answers, labels in zip(
            student_says, self._teacher_says, self._labels, strict=True
        ):
            meter.add(student_answers, teacher_answers, labels)
        return meter.result()

    @torch.no_grad()
    def _answers(self, network: nn.Module, name: str) -> Iterator[Tensor]:
        """What the network says of each batch, on the device."""
        with evaluating(network), explain_out_of_memory("evaluation.batch_size", self.batch_size):
            for start in range(0, len(self._images), self.ranks.count):
                self._check()
                batches = self._images[start : start + self.ranks.count]
                own = batches[self.ranks.rank] if self.ranks.rank < len(batches) else None
                for answers in self.ranks.exchange(None if own is None else self._ask(network, own, name)):
                    yield answers.to(self.device)

    def _ask(self, network: nn.Module, batch: Tensor, name: str) -> Tensor:
        inputs = self.normalize(to_pixels(batch.to(self.device, non_blocking=True)))
        return self.task.answers(self.task.logits(network(inputs), inputs.shape, network=name))
