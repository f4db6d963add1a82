"""What an attempt at a distillation leaves for others: snapshots, checkpoints, and in the end the student."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from distiller.export import described
from shared.broker import StudentSnapshot
from shared.networks.weights import save_checkpoint
from shared.storage import job_paths
from shared.storage.digests import file_sha256
from shared.worker.turn import Turn
from shared.worker.work_files import WorkFiles, encode, pointer_to


class Publisher:
    """The files of one attempt.

    Args:
        turn: the attempt.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._files = WorkFiles(turn)
        self._snapshot: StudentSnapshot | None = None
        self._checkpoint_name: str | None = None
        self._checkpoints_saved = 0

    def resume(self) -> dict[str, Any] | None:
        """The state that the last attempt left; None where there is none, or none that can be read."""
        attempt = self._turn.attempt
        pointer = self._turn.broker.checkpoints.pointer(attempt.job_id, attempt.task)
        newest = self._turn.broker.snapshots.newest(attempt.job_id)
        self._files.adopt(
            (job_paths.checkpoint_prefix(attempt.job_id, attempt.task), job_paths.snapshot_prefix(attempt.job_id)),
            in_use={pointer["name"] if pointer else None, newest.name if newest else None},
        )
        state = self._files.load(pointer) if pointer else None
        if pointer is not None and state is not None:
            self._checkpoint_name, self._snapshot = pointer["name"], newest
        return state

    def checkpoint(self, state: Mapping[str, Any], *, step: int, images_seen: int) -> None:
        """Leaves everything that a successor needs, and drops the checkpoint before.

        Args:
            state: to go on from.
            step: steps made.
            images_seen: images taken from the source.

        Raises:
            LeaseLost: another attempt has the task; the checkpoint does not count.
        """
        attempt, checkpoints = self._turn.attempt, self._turn.broker.checkpoints
        data = encode(state)
        self._checkpoints_saved += 1
        name = job_paths.checkpoint(attempt.job_id, attempt.task, attempt.number, self._checkpoints_saved)
        pointer = pointer_to(name, data, step=step)
        self._files.publish(
            name,
            write=partial(self._turn.storage.put_bytes, data, name),
            fence=partial(checkpoints.save, attempt, pointer, position=step + images_seen),
            counted=lambda: checkpoints.pointer(attempt.job_id, attempt.task) == pointer,
            instead_of=self._checkpoint_name,
        )
        self._checkpoint_name = name

    def snapshot(self, student: nn.Module, version: int) -> None:
        """Makes the student as it is now the one that synthesis disagrees with. Once for each version.

        Raises:
            LeaseLost: another attempt has the task; the snapshot does not count.
        """
        before = self._snapshot
        if before is not None and before.version == version:
            return
        attempt, snapshots = self._turn.attempt, self._turn.broker.snapshots
        local = self._turn.scratch / "snapshot.safetensors"
        self._turn.persist(lambda: save_checkpoint(student, local, {"step": str(version)}))
        name = job_paths.snapshot(attempt.job_id, attempt.number, version)
        snapshot = StudentSnapshot(version=version, name=name, sha256=file_sha256(local))
        self._files.publish(
            name,
            write=partial(self._turn.storage.put_file, local, name, move=True),
            fence=partial(snapshots.publish, attempt, snapshot),
            counted=lambda: snapshots.newest(attempt.job_id) == snapshot,
            instead_of=before.name if before else None,
        )
        self._snapshot = snapshot

    def student(self, student: nn.Module, step: int) -> dict[str, str]:
        """Writes the trained student.

        Returns:
            For the job's result: where it is, and its sha256.

        Raises:
            LeaseLost: another attempt has the task; what it wrote stays as it is.
        """
        turn, job_id = self._turn, self._turn.attempt.job_id
        local = turn.scratch / "student.safetensors"
        turn.persist(
            lambda: save_checkpoint(student, local, {**described(turn.spec), "job": job_id, "step": str(step)})
        )
        sha256 = file_sha256(local)
        turn.broker.leases.renew(turn.attempt, done=step)  # only whoever still has the task may replace the file
        turn.persist(partial(turn.storage.put_file, local, job_paths.student(job_id), move=True))
        return {"student": job_paths.student(job_id), "student_sha256": sha256}
