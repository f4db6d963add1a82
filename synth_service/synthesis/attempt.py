"""One attempt at a synthesis task: invert the teacher, write shards, announce them.

Encoding and storing run beside the inversion. A shard counts from the moment it is announced together
with the inverter's state at its end; a successor continues from there and everything later is made again.
Between shards synthesis waits when it is ``max_backlog`` ahead of the distiller, and in lockstep until the
student has been trained on the shard before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
import torch

from shared.broker import Backlog, LeaseLost, StudentSnapshot
from shared.events import EventType
from shared.networks.devices import choose_device
from shared.shards.format import SampleBatch, discard
from shared.shards.manifest import ShardManifest
from shared.specs import MAX_PARTITIONS
from shared.storage import job_paths
from shared.worker import work_files
from shared.worker.completion import finish
from shared.worker.loop import Turn, TurnYielded
from shared.worker.models import Models
from synth_service.inversion import SyntheticBatch, build_inverter
from synth_service.synthesis.plan import PartitionPlan, ShardPlan
from synth_service.synthesis.preview import Preview
from synth_service.synthesis.shard_writer import ShardWriter

logger = structlog.get_logger()

BACKLOG_POLL_SECONDS = 0.1

YIELD_SECONDS = 30.0
"""How long synthesis waits for a job's first distiller before another task, though newer, gets the worker."""


def synthesise(turn: Turn) -> None:
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


@dataclass(frozen=True)
class ShardEnd:
    """What goes with a shard through the writer: the state from which the next one is made."""

    state: bytes
    rounds: int
    seconds: float
    losses: Mapping[str, float]


class Synthesis:
    """The state of one attempt."""

    def __init__(self, turn: Turn) -> None:
        spec = turn.spec
        assert spec.synthesis is not None
        self._turn = turn
        self._spec = spec.synthesis
        self._task = turn.attempt.task
        self._num_classes = spec.teacher.num_classes
        self._is_lockstep = spec.distillation is not None and spec.distillation.pacing == "lockstep"
        self._max_backlog = 1 if self._is_lockstep else self._spec.max_backlog
        device = choose_device(turn.settings.device)
        self._models = Models(spec, turn.storage, turn.scratch, turn.settings.allowed_factories)
        self._wants_student = spec.distillation is not None and self._spec.adversarial > 0
        self._student = self._models.student().to(device) if self._wants_student else None
        self._snapshot: StudentSnapshot | None = None
        self._inverter = build_inverter(
            self._spec,
            self._models.teacher().to(device),
            num_classes=self._num_classes,
            input=spec.teacher.input,
            seed=spec.seed * MAX_PARTITIONS + self._task.partition,
            device=device,
        )
        if turn.settings.compile_networks:
            self._inverter.compile_networks()
        position = turn.broker.shards.position(turn.attempt.job_id, self._task)
        self._plan = PartitionPlan(self._spec, self._task.partition, position)
        self._checkpoint = position.checkpoint
        self._rounds = 0
        self._seconds = 0.0
        self._images = position.images
        self._folder = job_paths.shards(turn.attempt.job_id)
        self._preview = Preview(
            turn.storage,
            turn.attempt.job_id,
            self._task.partition,
            turn.attempt.number,
            num_classes=self._num_classes,
        )
        self._superseded = work_files.SupersededFiles(turn.storage, self._left_over())
        turn.make_room = self._superseded.delete_due

    def _left_over(self) -> list[str]:
        """Checkpoints of earlier attempts but the one to continue from."""
        prefix = job_paths.checkpoint_prefix(self._turn.attempt.job_id, self._task)
        current = self._checkpoint["name"] if self._checkpoint else None
        names = self._turn.storage.list(job_paths.work(self._turn.attempt.job_id))
        return [name for name in names if name.startswith(prefix) and name != current]

    def resume(self) -> None:
        """Continues after the last announced shard, if there is one."""
        if self._checkpoint is None:
            return
        self._rounds = self._checkpoint["rounds"]
        self._seconds = self._checkpoint["synthesis_seconds"]
        state = work_files.read(self._turn, self._checkpoint)
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
            self._folder,
            turn.scratch,
            job=attempt.job_id,
            partition=self._task.partition,
            attempt=attempt.number,
            image_format=self._spec.image_format,
            on_wait=self._while_waiting,
            on_sealed=self._preview.add,
        ) as writer:
            while (shard := self._plan.next_shard()) is not None:
                self._wait_for_distiller(writer)
                batches, losses = self._invert_shard(shard)
                end = ShardEnd(work_files.encode(self._inverter.state_dict()), self._rounds, self._seconds, losses)
                writer.submit(shard.index, shard.first_image, batches, end)
                self._announce_sealed(writer)
            self._announce_sealed(writer, wait=True)
        self._preview.flush()
        self._plan.refresh(turn.broker.shards.position(attempt.job_id, self._task))

    def _while_waiting(self, full: OSError | None) -> None:
        """Called by the writer while it is waited for; ``full`` says that it waits for room itself."""
        self._turn.check()
        if full is not None:
            self._turn.storage_is_full(full)

    # -- inversion ------------------------------------------------------------------------------------

    def _invert_shard(self, shard: ShardPlan) -> tuple[list[SampleBatch], Mapping[str, float]]:
        """Makes the batches of one shard; a partition's last may be smaller."""
        batches: list[SampleBatch] = []
        losses: Mapping[str, float] = {}
        first, left = shard.first_image, shard.images
        while left:
            self._turn.check()
            self._use_newest_student()
            started = time.perf_counter()
            count = min(left, self._spec.batch_size)
            targets = [self._plan.target(first + place, self._num_classes) for place in range(count)]
            batch = self._inverter.invert(torch.tensor(targets), self._turn.check)
            self._seconds += time.perf_counter() - started
            self._rounds += 1
            batches.append(self._samples(batch))
            losses = batch.losses
            first, left = first + count, left - count
            self._images += count
            self._turn.progress(self._images)
        return batches, losses

    def _samples(self, batch: SyntheticBatch) -> SampleBatch:
        return SampleBatch(
            images=batch.images.numpy(),
            targets=batch.targets.numpy(),
            teacher_top1=batch.teacher_top1.numpy(),
            teacher_confidence=batch.teacher_confidence.numpy(),
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
            self._announce(manifest, end)

    def _announce(self, manifest: ShardManifest, end: ShardEnd) -> None:
        turn, attempt = self._turn, self._turn.attempt
        name = job_paths.checkpoint(attempt.job_id, self._task, attempt.number, manifest.index)
        turn.persist(lambda: turn.storage.put_bytes(end.state, name))
        checkpoint = work_files.pointer_to(name, end.state, rounds=end.rounds, synthesis_seconds=end.seconds)
        try:
            turn.broker.shards.announce(attempt, manifest, checkpoint)
        except LeaseLost:
            # Any other error leaves open whether the shard counts, so the files stay until the job ends.
            if not turn.broker.shards.is_announced(manifest):
                turn.storage.delete(name)
                discard(turn.storage, self._folder, manifest)
            raise
        if self._checkpoint is not None:
            self._superseded.add(self._checkpoint["name"])
        self._checkpoint = checkpoint
        turn.report(step=end.rounds, metrics=end.losses)

    # -- keeping pace ---------------------------------------------------------------------------------

    def _wait_for_distiller(self, writer: ShardWriter[ShardEnd]) -> None:
        """Returns once the next shard may be made."""
        if self._is_lockstep:
            self._announce_sealed(writer, wait=True)
        waited = False
        patience = YieldRule(self._turn)
        while True:
            self._turn.check()
            self._announce_sealed(writer)
            backlog = self._turn.broker.shards.backlog(self._turn.attempt.job_id)
            ahead = backlog.shards + writer.pending
            if ahead < self._max_backlog:
                break
            if patience.is_over(backlog):
                self._announce_sealed(writer, wait=True)
                raise TurnYielded("no distiller for this job, and another task waits", is_older=patience.is_older)
            if not waited and not self._is_lockstep:
                waited = True
                self._turn.report(EventType.SYNTHESIS_PAUSED, {"backlog": ahead})
            self._turn.pause(BACKLOG_POLL_SECONDS)
        if waited:
            self._turn.report(EventType.SYNTHESIS_RESUMED, {"backlog": ahead})


class YieldRule:
    """When a worker that waits for a distiller lets another task have its place.

    All distillers may be waiting for shards of other jobs, and this worker may be the only one that can make
    them: because a worker of an older job vanished (then it yields at once), or because a shard of a job whose
    synthesis had ended was damaged and is to be made again (then that task is new in the queue).
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._heartbeat: str | None = None
        self._heard_at = self._started_at = time.monotonic()
        self._next_look = 0.0
        self.is_older = False
        """Whether the task that is let pass is older than this one."""

    def is_over(self, backlog: Backlog) -> bool:
        """Whether to yield now. Asks the server once a second."""
        moment = time.monotonic()
        leases = self._turn.broker.leases
        if backlog.distiller_heartbeat != self._heartbeat:
            self._heartbeat, self._heard_at = backlog.distiller_heartbeat, moment
        # A distiller that fell silent is none, though its task is still said to run until another takes it.
        if backlog.has_distiller and moment - self._heard_at < 2 * leases.lease_seconds:
            self._started_at = moment
            return False
        if moment < self._next_look:
            return False
        self._next_look = moment + 1.0
        self.is_older = leases.has_waiting(self._turn.attempt, only_older=True)
        is_late = moment - self._started_at > YIELD_SECONDS
        return self.is_older or (is_late and leases.has_waiting(self._turn.attempt, only_older=False))
