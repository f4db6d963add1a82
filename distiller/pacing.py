"""How many steps the images so far allow: the one rule in which free pacing and lockstep differ.

Free pacing lets the student train as soon as the pool is warm, and holds back ``full_pool_share`` of the steps until
every image is there. Lockstep, as in the paper, trains ``steps_per_batch`` steps for each batch.
"""

from __future__ import annotations

from typing import Protocol

from shared.specs import DistillationSpec, JobSpec, SynthesisBase


class Pacing(Protocol):
    """A rule that depends on nothing but what has been seen, so that a successor goes on as its predecessor would."""

    def goal(self, images_seen: int, source_complete: bool) -> int:
        """Steps that may have been made once so many images were seen; at most the job's.

        Args:
            images_seen: images ever added to the pool.
            source_complete: no image will follow.
        """


class Free:
    """Trains beside the synthesis.

    Args:
        spec: with ``steps`` resolved.
        synthesis: of the same job; None for a dataset, which is all there at once.
    """

    def __init__(self, spec: DistillationSpec, synthesis: SynthesisBase | None) -> None:
        self._steps = _steps(spec)
        self._early_steps = int(self._steps * (1 - spec.full_pool_share))
        self._warm = spec.batch_size
        if synthesis is not None:
            self._warm = max(self._warm, (spec.warmup_batches or 0) * synthesis.batch_size)

    def goal(self, images_seen: int, source_complete: bool) -> int:
        """All steps in the end; before, none until the pool is warm and never the last ones."""
        if source_complete:
            return self._steps
        return self._early_steps if images_seen >= self._warm else 0


class Lockstep:
    """Trains a fixed number of steps after each batch.

    Args:
        spec: with ``steps`` resolved.
        synthesis: of the same job.
    """

    def __init__(self, spec: DistillationSpec, synthesis: SynthesisBase) -> None:
        self._steps = _steps(spec)
        self._steps_per_batch = spec.steps_per_batch
        self._warmup_batches = spec.warmup_batches or 0
        self._batch_size = synthesis.batch_size

    def goal(self, images_seen: int, source_complete: bool) -> int:
        """What the batches ask for; the last of a partition may be smaller and counts like the others."""
        batches = -(-images_seen // self._batch_size)
        return min(self._steps, max(0, batches - self._warmup_batches) * self._steps_per_batch)


def pacing_of(spec: JobSpec) -> Pacing:
    """The rule of a job that distils."""
    assert spec.distillation is not None
    if spec.distillation.pacing == "lockstep":
        assert spec.synthesis is not None
        return Lockstep(spec.distillation, spec.synthesis)
    return Free(spec.distillation, spec.synthesis)


def _steps(spec: DistillationSpec) -> int:
    if spec.steps is None:
        raise ValueError("distillation.steps is not resolved; take the spec from a validated JobSpec")
    return spec.steps
