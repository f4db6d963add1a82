"""The interface of every inversion method: targets in, images out, one round at a time.

A round is a function of the inverter's state, the targets and the student; all that is random in it is
drawn from a generator seeded by (seed, round number). So the state holds no random state, a repeated round
gives the same bytes, and a round that was interrupted is simply run again: nothing that a state holds is
changed before the round's last step, except for the first layer's re-initialization, which repeats exactly.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shared.networks.devices import explain_out_of_memory
from shared.specs import InputSpec, SynthesisBase
from synth_service.inversion.objective import BestImages, Objective, SyntheticBatch

Check = Callable[[], None]


def nothing() -> None:
    """A check that never objects."""


class Inverter(ABC):
    """Inverts a teacher into batches of images.

    Subclasses optimize images in ``optimize`` and change lasting state only in ``commit``.

    Args:
        spec: settings of the method.
        teacher: on ``device``. Kept as found outside ``invert``.
        num_classes: width of the teacher's logits.
        input: shape and normalization of the images.
        seed: of everything random.
        device: where to compute.
    """

    def __init__(
        self,
        spec: SynthesisBase,
        teacher: nn.Module,
        *,
        num_classes: int,
        input: InputSpec,
        seed: int,
        device: torch.device,
        disagreement: Callable[[Tensor, Tensor], Tensor],
        bn_momentum: float,
    ) -> None:
        self.batch_size = spec.batch_size
        self.input = input
        self.seed = seed
        self.device = device
        self.rounds = 0
        """Finished rounds."""
        self._compiles = False
        self.objective = Objective(
            spec,
            teacher,
            num_classes=num_classes,
            input=input,
            disagreement=disagreement,
            bn_momentum=bn_momentum,
            device=device,
        )
        self.dtype = self.objective.dtype

    @abstractmethod
    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """The inner loop: images for the targets (N,), from the state as it is and changing none of it.

        Args:
            targets: int64, on the device.
            random: all that is drawn comes from it; on the device.
            check: called before every inner step.
        """

    @abstractmethod
    def commit(self) -> None:
        """Take what the finished inner loop learned into the state."""

    def invert(self, targets: Tensor, check: Check = nothing) -> SyntheticBatch:
        """One round: an image for every target.

        Args:
            targets: (N,) int64 classes, on any device, N ≤ ``batch_size``.
            check: called before every inner step; what it raises ends the round, leaving the state of the
                last finished one.

        Raises:
            UserError: ``non_finite_loss``, ``out_of_memory`` or ``wrong_output_shape``.
        """
        if not 1 <= len(targets) <= self.batch_size:
            raise ValueError(f"a round takes 1 to {self.batch_size} targets, not {len(targets)}")
        targets = targets.to(self.device, non_blocking=True)
        with explain_out_of_memory("synthesis.batch_size", self.batch_size), _repeatable(), self.objective.active():
            best = self.optimize(targets, self.random(f"round {self.rounds}"), check)
            batch = best.fetch(self.rounds + 1)
            self.commit()
            if self.objective.matching is not None:
                self.objective.matching.update_average()
        self.rounds += 1
        return batch

    def use_student(self, student: nn.Module | None) -> None:
        """Turn the adversarial term against this student, or off.

        Args:
            student: on the inverter's device. It stays the caller's: frozen and in evaluation mode during
                ``invert``, as found outside (but compiled, see ``compile_networks``).
        """
        if student is not None and self._compiles and student._compiled_call_impl is None:
            student.compile()
        self.objective.student = student

    def compile_networks(self) -> None:
        """Compile what a round runs besides the teacher with ``torch.compile``, when it runs next.

        The teacher stays as it is: its BatchNorm layers are exchanged in every round, which would compile it
        anew each time. Sums come out a little differently than without, but the same from run to run.
        """
        self._compiles = True

    def random(self, purpose: str) -> torch.Generator:
        """A generator on the device for one purpose, determined by the seed."""
        digest = hashlib.blake2b(f"{self.seed}/{purpose}".encode(), digest_size=8).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big", signed=True))

    def state_dict(self) -> dict[str, Any]:
        """All that later rounds depend on besides spec, teacher, seed and student.

        Tensors, numbers and strings, so it loads with ``torch.load(weights_only=True)``. Tensors are the
        inverter's own: save them before the next round.
        """
        matching = self.objective.matching
        return {"rounds": self.rounds, "bn_average": None if matching is None else matching.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where an inverter with the same spec, teacher and seed was: to the same bytes."""
        self.rounds = int(state["rounds"])
        average = state["bn_average"]
        if self.objective.matching is not None:
            self.objective.matching.average = None if average is None else average.clone().to(self.device)


@contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN may otherwise pick, by timing, algorithms whose sums come out differently from run to run."""
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=False,
        deterministic=True,
        allow_tf32=torch.backends.cudnn.allow_tf32,
    ):
        yield
