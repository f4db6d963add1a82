"""One attempt at a job's distillation: from the source's images to the trained student.

Free pacing takes new shards between bursts of steps. Lockstep does all steps of a shard and only then counts it as
consumed, which lets synthesis make the next one. ``distiller.pacing`` says how many steps are due, and
``distiller.publisher`` what is left for others. What a successor needs (student, optimizer, generators of randomness,
position) is one checkpoint file; images are read again from the shards.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from distiller.evaluation import Evaluator
from distiller.export import export_student
from distiller.held_back import HeldBack
from distiller.pacing import pacing_of
from distiller.publisher import Publisher
from distiller.ranks import Ranks, RanksLost
from distiller.replica import Replica
from distiller.sources import ExistingDataset, JobShards, dataset_paths
from shared.broker.connection import BLOCK_SECONDS
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import Measurement
from shared.networks.devices import choose_device
from shared.shards.reader import iter_samples
from shared.tasks.base import Evaluation
from shared.tasks.quality import Quality, Verdict, judge, measures_of_job
from shared.worker.completion import finish
from shared.worker.models import Models
from shared.worker.turn import Turn, TurnYielded, WorkerStopping
from shared.worker.yielding import YieldRule

logger = structlog.get_logger()

BURST_STEPS = 16
"""Steps between looks at the shard stream and the clock; short enough to hear a stop within seconds."""

METRICS_SECONDS = 1.0
CHECKPOINT_SECONDS = 20.0

QUALITY_MEASUREMENTS = 16
"""How often the images held back are looked at, evenly over the steps."""

CHARTED = ("held_back_agreement", "held_back_confidence", "class_entropy", "diversity")
"""The measures that are told over time."""

YIELD_SECONDS = 30.0
"""How long the distiller waits for images before another task gets the worker, whose pool has to be filled again."""


def distil(turn: Turn, ranks: Ranks | None = None) -> None:
    """The distiller's work function: does one distillation task to its end.

    Args:
        turn: at the task.
        ranks: the processes of this distiller, which this one leads; None for this one alone.

    Raises:
        UserError: the job cannot work as written.
        RanksLost: another process of this distiller is gone; the last checkpoint is where a successor goes on.
        LeaseLost, JobStopped: as ``Turn.check``.
        WorkerStopping, TurnYielded: a checkpoint is left.
    """
    with closing(Distillation(turn, ranks or Ranks())) as run:
        run.resume()
        try:
            while True:
                run.train()
                if run.complete():
                    return
        except (WorkerStopping, TurnYielded):
            run.save_checkpoint()
            raise


class Distillation:
    """The state of one attempt."""

    def __init__(self, turn: Turn, ranks: Ranks) -> None:
        spec = turn.spec
        assert spec.distillation is not None
        assert spec.distillation.steps is not None
        self._turn = turn
        self._spec = spec.distillation
        self._steps = spec.distillation.steps
        self._pacing = pacing_of(spec)
        self._is_lockstep = self._spec.pacing == "lockstep"
        device = choose_device(turn.settings.device)
        models = Models(spec, turn.storage, turn.scratch, turn.settings.allowed_factories, turn.check)
        self._task = models.task
        self._student = models.student().to(device)
        self._ranks = ranks
        teacher = models.teacher().to(device)
        self._replica = Replica(
            spec,
            teacher,
            self._student,
            self._task,
            settings=turn.settings,
            device=device,
            ranks=ranks,
        )
        self._trainer, self._pool = self._replica.trainer, self._replica.pool
        self._evaluator = self._build_evaluator()
        self._held_back = HeldBack(self._task, spec.teacher.input, device, teacher)
        self._is_poor = False
        self._quality_every = max(BURST_STEPS, self._steps // QUALITY_MEASUREMENTS)
        self._source = JobShards(turn) if spec.shards is None else ExistingDataset(turn, spec.shards)
        self._initial_images = 0
        self._seconds = 0.0
        self._measured: tuple[int, Evaluation] | None = None
        self._publisher = Publisher(turn)
        self._patience = YieldRule(turn, YIELD_SECONDS)
        self._next_metrics = self._next_checkpoint = time.monotonic()

    def _build_evaluator(self) -> Evaluator | None:
        evaluation, teacher_spec = self._turn.spec.evaluation, self._turn.spec.teacher
        if evaluation is None:
            return None
        samples = iter_samples(
            dataset_paths(self._turn, evaluation.shards, "evaluation.shards"),
            teacher_spec.input.shape,
            labels=self._task.labels,
            require_labels=True,
            any_size=self._task.takes_other_sizes,
            check=self._turn.check,
        )
        self._replica.measure_on(samples, self._turn.check)
        return self._replica.evaluator

    def _fill_pool(self, images: NDArray[np.uint8]) -> None:
        self._replica.add(self._held_back.take(images), self._turn.persist)

    def close(self) -> None:
        """Gives up what the attempt holds outside of memory."""
        self._replica.close()
        with suppress(RanksLost):  # why the attempt ends is known by then
            self._ranks.tell("end")

    # -- training -------------------------------------------------------------------------------------

    def train(self) -> None:
        """Takes images and trains as the pacing allows, until every image was taken and every step is done."""
        if self._trainer.step_count == 0:
            self._judge(is_final=False)  # what the teacher alone tells is known before the first image
        self._replica.prepare(self._turn.check)
        if self._is_lockstep:
            self._catch_up()  # a predecessor may have stopped in the middle of a shard's steps
        while not self._source.is_complete or self._trainer.step_count < self._goal():
            self._turn.check()
            if not self._source.is_complete:
                self._take(block_seconds=0 if self._trainer.step_count < self._goal() else BLOCK_SECONDS)
            if self._trainer.step_count < self._goal():
                self._burst(self._goal())
                self._save_checkpoint_when_due()

    def _goal(self) -> int:
        return self._pacing.goal(self._images_taken, self._source.is_complete)

    @property
    def _images_taken(self) -> int:
        """Of the source: what the pacing goes by, and the synthesis."""
        return self._held_back.arrived - self._initial_images

    def _catch_up(self) -> None:
        """Does the steps that the images so far ask for, then lets synthesis have the student that came of it."""
        if not self._images_taken:
            return
        goal = self._goal()
        while self._trainer.step_count < goal:
            self._turn.check()
            self._burst(goal)
        if goal:
            self._publisher.snapshot(self._student, self._trainer.step_count)
        self.save_checkpoint()
        self._tell_consumed()

    def _take(self, *, block_seconds: float) -> None:
        shards = self._source.shards
        for images in self._source.take(block_seconds=block_seconds):
            self._fill_pool(images)
            if self._is_lockstep:
                self._catch_up()
        is_new = self._source.shards != shards
        if is_new or block_seconds:
            self._tell_consumed()
        if is_new or not block_seconds:
            self._patience.goes_on()
        elif self._patience.is_over():
            raise TurnYielded("no images for this job, and another task waits")

    def _take_initial_shards(self) -> None:
        pattern = self._turn.spec.initial_shards
        if pattern is not None:
            for images in ExistingDataset(self._turn, pattern, "initial_shards").take(block_seconds=0):
                self._fill_pool(images)
            self._initial_images = self._held_back.arrived

    def _tell_consumed(self) -> None:
        """Lets synthesis go on. Also told when nothing is new, since a crashed server may have forgotten the last."""
        self._turn.broker.shards.consumed(self._turn.attempt, shards=self._source.shards, images=self._images_taken)

    def _burst(self, goal: int) -> None:
        """A few steps, then whatever is due after the last of them."""
        started = time.perf_counter()
        every = [self._spec.snapshot_every_steps, self._quality_every] + (
            [self._turn.spec.evaluation.every_steps] if self._turn.spec.evaluation else []
        )
        step = self._trainer.step_count
        last = min([goal, step + BURST_STEPS, *(step + period - step % period for period in every)])
        self._replica.steps(last - step)
        self._seconds += time.perf_counter() - started
        self._turn.progress(last)
        if time.monotonic() >= self._next_metrics or last == self._steps:
            self._next_metrics = time.monotonic() + METRICS_SECONDS
            consumed = {"shards_consumed": float(self._source.shards)}
            self._turn.report(step=last, metrics=self._trainer.metrics() | consumed)
        if last % self._spec.snapshot_every_steps == 0 and not self._is_lockstep and not self._source.is_complete:
            self._publisher.snapshot(self._student, last)
        if self._turn.spec.evaluation and last % self._turn.spec.evaluation.every_steps == 0:
            self._measure()
        if last % self._quality_every == 0 and last < self._steps:
            self._judge(is_final=False)

    # -- measuring ---------------------------------------------------------------------

    def _judge(self, *, is_final: bool) -> Quality:
        """Looks at the images held back, and says what is to be expected.

        Raises:
            UserError: ``poor_quality``, where the job is to stop then.
        """
        step = self._trainer.step_count
        measures = self._held_back.measure(self._student, self._trainer.teacher)
        told = {name: measures[name] for name in CHARTED if name in measures}
        if is_final:
            rows = self._turn.broker.reports.metrics(self._turn.attempt.job_id)
            measures = measures_of_job(self._turn.spec, rows) | measures
        quality = judge(measures, is_final=is_final)
        is_news = quality.verdict is Verdict.POOR and not self._is_poor
        self._is_poor = quality.verdict is Verdict.POOR
        event = EventType.QUALITY_POOR if is_news else None
        about = {"step": step, "reason": quality.reason}
        self._turn.report(event, about, quality=quality, step=step, metrics=told)
        if quality.verdict is Verdict.POOR and self._turn.spec.on_poor == "stop":
            raise UserError("poor_quality", f"{quality.reason} {quality.remedy}")
        return quality

    def _measure(self) -> Evaluation | None:
        """Measures the student on the evaluation set, once for each step."""
        step = self._trainer.step_count
        if self._evaluator is None:
            return None
        if self._measured is None or self._measured[0] != step:
            found = self._replica.evaluate()
            self._measured = step, found
            measurement = Measurement.of(step, found.metrics)
            teachers = self._task.description.teacher_metric.name  # it never changes
            values = {name: value for name, value in found.metrics.items() if name != teachers}
            told = {"step": step, **values}
            self._turn.report(EventType.EVALUATED, told, measurement=measurement, step=step, metrics=values)
        return self._measured[1]

    # -- checkpoints ----------------------------------------------------------------------------------

    def _save_checkpoint_when_due(self) -> None:
        if time.monotonic() >= self._next_checkpoint:
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Leaves everything that a successor needs."""
        state = self._replica.state_dict() | {"source": self._source.state(), "seconds": self._seconds}
        self._publisher.checkpoint(state, step=self._trainer.step_count, images_seen=self._held_back.arrived)
        self._next_checkpoint = time.monotonic() + CHECKPOINT_SECONDS

    def resume(self) -> None:
        """Continues where the last attempt's checkpoint is, if there is one."""
        self._take_initial_shards()
        state = self._publisher.resume()
        if state is None:
            # From the beginning, or once more from there: the shards are all still to be had.
            return
        passed_over = self._source.begin_refill(state["source"], self._pool.capacity)
        if passed_over:
            self._replica.skip(passed_over)
        for images in self._source.refill():
            self._fill_pool(images)
        self._replica.load_state_dict(state)
        self._seconds = state["seconds"]
        self._turn.progress(self._trainer.step_count)
        logger.info("resumed", step=self._trainer.step_count, images=len(self._pool))
        if not self._is_lockstep:
            self._tell_consumed()

    # -- the end --------------------------------------------------------------------------------------

    def complete(self) -> bool:
        """Measures and writes the student, and ends the task. False when shards have to be waited for again."""
        turn = self._turn
        found = self._measure()
        written = self._publisher.student(self._student, self._trainer.step_count)
        measured: dict[str, Any] = {
            "kd_steps": self._trainer.step_count,
            "kd_seconds": round(self._seconds, 3),
            "kd_steps_per_second": round(self._trainer.step_count / self._seconds, 3),
            **self._source.counts(),
            **written,
        }
        if found is not None and self._evaluator is not None:
            measured |= found.metrics | found.details
            measured["evaluation_images"] = self._evaluator.images
        measured["quality"] = self._judge(is_final=True).model_dump(mode="json")
        measured |= export_student(turn, self._student)
        if finish(turn, measured):
            return True
        self._source.reopen()
        return False
