"""One attempt at a synthesis task: invert the teacher, write shards, announce them.

Encoding and storing run beside the inversion. A shard counts from the moment it is announced together
with the inverter's state at its end; a successor continues from there and everything later is made again.
Between shards synthesis waits for whoever trains on them: see ``synth_service.synthesis.pacing``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import structlog

from shared import seeds
from shared.broker import StudentSnapshot
from shared.networks.devices import choose_device
from shared.networks.training_inputs import facts_of
from shared.shards.format import SampleBatch
from shared.storage import job_paths
from shared.worker.completion import finish
from shared.worker.models import Models
from shared.worker.turn import Turn
from shared.worker.work_files import encode
from synth_service.inversion import Setup, SyntheticBatch, build_inverter
from synth_service.synthesis.pacing import Backpressure
from synth_service.synthesis.plan import PartitionPlan, ShardPlan
from synth_service.synthesis.preview import Preview
from synth_service.synthesis.publisher import ShardEnd, ShardPublisher
from synth_service.synthesis.shard_writer import ShardWriter

logger = structlog.get_logger()


def synthesize(turn: Turn) -> None:
    """The synthesis worker's work function: does one partition to its end.

    Raises:
        UserError: the job cannot work as written.
        LeaseLost, JobStopped, WorkerStopping, TurnYielded: see ``Turn`` and ``Worker``.
    """
    run = Synthesis(turn)
    run.resume()
    while True:
        run.make_planned_shards()
        if finish(turn, {}):
            return


class Synthesis:
    """The state of one attempt."""

    def __init__(self, turn: Turn) -> None:
        spec = turn.spec
        assert spec.synthesis is not None
        self._turn = turn
        self._spec = spec.synthesis
        self._task = turn.attempt.task
        device = choose_device(turn.settings.device)
        self._models = Models(spec, turn.storage, turn.scratch, turn.settings.allowed_factories, turn.check)
        self._wants_student = spec.distillation is not None and self._spec.adversarial > 0
        self._student = self._models.student(is_inverted=True).to(device) if self._wants_student else None
        self._snapshot: StudentSnapshot | None = None
        teacher = self._models.teacher(is_inverted=True).to(device)
        self._teacher_facts = facts_of(teacher, spec.teacher.input)
        self._inverter = build_inverter(
            self._spec,
            Setup(
                teacher=teacher,
                task=self._models.task,
                input=spec.teacher.input,
                seed=seeds.partition_seed(spec.seed, self._task.partition),
                device=device,
                precision=spec.precision,
            ),
        )
        if turn.settings.compile_networks:
            self._inverter.compile_networks()
        position = turn.broker.shards.position(turn.attempt.job_id, self._task)
        self._plan = PartitionPlan(self._spec, self._task.partition, position)
        self._pointer = position.checkpoint
        self._rounds = 0
        self._seconds = 0.0
        self._images = position.images
        self._publisher = ShardPublisher(turn)
        self._preview = Preview(
            turn.storage.impatient(),
            turn.attempt.job_id,
            self._task.partition,
            turn.attempt.number,
            num_classes=spec.teacher.num_classes,
            labels=self._models.task.labels,
        )

    def resume(self) -> None:
        """Continues after the last announced shard, if there is one."""
        state = self._publisher.resume(self._pointer)
        if self._pointer is None:
            return
        self._rounds = self._pointer["rounds"]
        self._seconds = self._pointer["synthesis_seconds"]
        if state is None:
            # Images are still due, and nobody has the generator any more. A fresh one makes them, with other
            # random numbers than those of the rounds that are done.
            self._inverter.rounds = self._rounds
        else:
            self._inverter.load_state_dict(state)
        logger.info("resumed", rounds=self._rounds, images=self._images)

    def make_planned_shards(self) -> None:
        """Makes, writes and announces every shard that is known to be needed."""
        turn, attempt = self._turn, self._turn.attempt
        with ShardWriter[ShardEnd](
            turn.storage,
            job_paths.staging(attempt.job_id),
            turn.scratch,
            job=attempt.job_id,
            partition=self._task.partition,
            attempt=attempt.number,
            image_format=self._spec.image_format,
            labels=self._models.task.labels,
            on_wait=self._while_waiting,
            on_sealed=self._preview.add,
        ) as writer:
            backpressure = Backpressure(turn, lambda wait: self._announce_sealed(writer, wait=wait))
            while (shard := self._plan.next_shard()) is not None:
                backpressure.wait(lambda: writer.pending)
                batches, losses = self._invert_shard(shard)
                end = ShardEnd(encode(self._inverter.state_dict()), self._rounds, self._seconds, losses)
                writer.submit(shard.index, shard.first_image, batches, end)
                self._announce_sealed(writer)
            self._announce_sealed(writer, wait=True)
        self._preview.flush()
        self._plan.refresh(turn.broker.shards.position(attempt.job_id, self._task))

    def _while_waiting(self, full: OSError | None) -> None:
        """Called by the writer while it is waited for; ``full`` says that it waits for room itself."""
        self._turn.check()
        if full is not None:
            self._turn.show_hold(full)

    # -- inversion ------------------------------------------------------------------------------------

    def _invert_shard(self, shard: ShardPlan) -> tuple[list[SampleBatch], Mapping[str, float]]:
        """Makes the batches of one shard; a partition's last may be smaller."""
        batches: list[SampleBatch] = []
        losses: Mapping[str, float] = {}
        seen: dict[str, float] = defaultdict(float)
        first, left = shard.first_image, shard.images
        while left:
            self._turn.check()
            self._use_newest_student()
            started = time.perf_counter()
            count = min(left, self._spec.batch_size)
            targets = self._models.task.targets(self._plan.number_in_job(first), count)
            batch = self._inverter.invert(targets, self._step_by_step(count))
            self._seconds += time.perf_counter() - started
            self._rounds += 1
            batches.append(self._samples(batch))
            losses = batch.losses
            for name, value in _seen(batch).items():
                seen[name] += value
            first, left = first + count, left - count
            self._images += count
            self._turn.progress(self._images)
        return batches, {**losses, **{name: value / shard.images for name, value in seen.items()}}

    def _step_by_step(self, count: int) -> Callable[[], None]:
        """A check for a round of so many images that shows the share of its steps that is done.

        A round of thousands of steps takes minutes; images count as made, for show, as the steps go by.
        """
        steps_done = 0
        steps = max(1, self._spec.total_steps)

        def check() -> None:
            nonlocal steps_done
            self._turn.check()
            self._turn.progress(self._images + count * min(steps_done, steps) // steps)
            steps_done += 1

        return check

    def _samples(self, batch: SyntheticBatch) -> SampleBatch:
        return SampleBatch(
            images=batch.images.numpy(),
            targets=batch.targets.numpy(),
            described={name: values.numpy() for name, values in batch.described.items()},
            round=self._rounds,
            student_version=self._snapshot.version if self._snapshot else 0,
        )

    def _use_newest_student(self) -> None:
        if self._student is None:
            return
        newest = self._turn.broker.snapshots.newest(self._turn.attempt.job_id)
        if newest is None or newest == self._snapshot:
            return
        if self._models.fill_from_snapshot(self._student, newest):
            self._snapshot = newest
            self._inverter.use_student(self._student)

    # -- shards ---------------------------------------------------------------------------------------

    def _announce_sealed(self, writer: ShardWriter[ShardEnd], *, wait: bool = False) -> None:
        """Announces what is sealed; with ``wait``, everything that was submitted."""
        for manifest, end in writer.sealed(block=wait):
            self._publisher.announce(manifest, end)
            self._turn.report(step=end.rounds, metrics={**end.losses, **self._teacher_facts})
            self._teacher_facts = {}  # told once


def _seen(batch: SyntheticBatch) -> dict[str, float]:
    """How the teacher sees the images, summed over them; whether as their target, where an image has one answer."""
    found = {}
    confidence, top1 = batch.described.get("teacher_confidence"), batch.described.get("teacher_top1")
    if confidence is not None:
        found["teacher_confidence"] = float(confidence.sum())
    if top1 is not None and top1.shape == batch.targets.shape:
        found["label_agreement"] = float((top1 == batch.targets).sum())
    return found
