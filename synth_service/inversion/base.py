"""The interface of every inversion method: targets in, images out, one round at a time.

A round is a function of the inverter's state, the targets and the student; all that is random in it is
drawn from a generator seeded by (seed, round number). So the state holds no random state, a repeated round
gives the same bytes, and a round that was interrupted is simply run again: nothing that a state holds is
changed before the round's last step, except for the first layer's re-initialization, which repeats exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from shared import seeds
from shared.networks.devices import explain_out_of_memory
from shared.specs import SynthesisBase
from synth_service.inversion.objective import BestImages, Objective, SyntheticBatch
from synth_service.inversion.terms import LossTerm, Setup

Check = Callable[[], None]


def nothing() -> None:
    """A check that never objects."""


S = TypeVar("S", bound=SynthesisBase)


class Inverter(ABC, Generic[S]):
    """Inverts a teacher into batches of images.

    Subclasses say what they minimize in ``terms``, optimize images in ``optimize`` and change lasting state only
    in ``commit``.

    Args:
        spec: settings of the method.
        setup: teacher, task, images, seed and device.
    """

    def __init__(self, spec: S, setup: Setup) -> None:
        self.spec = spec
        self.setup = setup
        self.input = setup.input
        self.device = setup.device
        self.dtype = setup.dtype
        self.rounds = 0
        """Finished rounds."""
        self._compiles = False
        self.objective = Objective(setup, self.terms())

    @abstractmethod
    def terms(self) -> Sequence[LossTerm]:
        """What is minimized, for the spec's weights. Called once, on construction."""

    @abstractmethod
    def optimize(self, targets: Tensor, random: torch.Generator, check: Check) -> BestImages:
        """The inner loop: images for the targets (N, …), from the state as it is and changing none of it.

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
            targets: (N, …) int64, see ``Task.targets``, on any device, N ≤ ``batch_size``.
            check: called before every inner step; what it raises ends the round, leaving the state of the
                last finished one.

        Raises:
            UserError: ``non_finite_loss``, ``out_of_memory`` or ``wrong_output_shape``.
        """
        largest = self.spec.batch_size
        if not 1 <= len(targets) <= largest:
            raise ValueError(f"a round takes 1 to {largest} targets, not {len(targets)}")
        targets = targets.to(self.device, non_blocking=True)
        with explain_out_of_memory("synthesis.batch_size", largest), _repeatable(), self.objective.active():
            best = self.optimize(targets, self.random(f"round {self.rounds}"), check)
            batch = best.fetch(self.objective, self.rounds + 1)
            self.commit()
            for term in self.objective.terms:
                term.finish_round()
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
        return seeds.generator(self.setup.seed, purpose, self.device)

    def state_dict(self) -> dict[str, Any]:
        """All that later rounds depend on besides spec, teacher, seed and student.

        Tensors, numbers and strings, so it loads with ``torch.load(weights_only=True)``. Tensors are the
        inverter's own: save them before the next round.
        """
        states = {term.name: state for term in self.objective.terms if (state := term.state_dict())}
        # BatchNorm's average has a place of its own, where the first version of this state had it.
        average = states.pop("bn", {}).get("average")
        return {"rounds": self.rounds, "bn_average": average, "terms": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where an inverter with the same spec, teacher and seed was: to the same bytes."""
        self.rounds = int(state["rounds"])
        states = {"bn": {"average": state["bn_average"]}, **state.get("terms", {})}
        for term in self.objective.terms:
            if term.name in states:
                term.load_state_dict(states[term.name])


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
