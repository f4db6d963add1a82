"""Teachers and students of a job, as workers load them: built from the spec, filled from the storage."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from shared import seeds
from shared.broker import StudentSnapshot
from shared.errors import UserError
from shared.networks.building import build_network
from shared.networks.weights import load_checkpoint
from shared.specs import JobSpec, NetworkSpec
from shared.storage import PathOutsideStorage, Storage
from shared.tasks.base import build_task


class Models:
    """Builds the networks of one job.

    Args:
        spec: the job.
        storage: where the checkpoints are.
        scratch: local folder for copies of remote files.
        allowed_factories: as in the settings.
    """

    def __init__(self, spec: JobSpec, storage: Storage, scratch: Path, allowed_factories: tuple[str, ...]) -> None:
        self._spec = spec
        self._storage = storage
        self._scratch = scratch
        self._allowed_factories = allowed_factories
        teacher = spec.teacher
        self.task = build_task(teacher.task, teacher.num_classes)
        """What both networks do."""

    def teacher(self) -> nn.Module:
        """The teacher with its weights, on the CPU.

        Raises:
            UserError: it cannot be built, or its checkpoint is missing or foreign.
        """
        network = self._build(self._spec.teacher)
        self._fill(network, self._spec.teacher.checkpoint, "teacher.checkpoint")
        return network

    def student(self) -> nn.Module:
        """The student as it starts: from its checkpoint, or initialized from the job's seed. On the CPU.

        Raises:
            UserError: as for the teacher.
        """
        spec = self._spec.student
        assert spec is not None
        with seeds.seeded_globally(self._spec.seed, seeds.STUDENT):
            network = self._build(spec)
        if spec.checkpoint is not None:
            self._fill(network, spec.checkpoint, "student.checkpoint")
        return network

    def fill_from_snapshot(self, network: nn.Module, snapshot: StudentSnapshot) -> bool:
        """Loads a published snapshot into a student. False when a newer one has replaced it meanwhile."""
        try:
            path = self._storage.fetch(snapshot.name, self._scratch)
            if hashlib.sha256(path.read_bytes()).hexdigest() != snapshot.sha256:
                return False
            load_checkpoint(network, path, field="student snapshot")
        except (FileNotFoundError, UserError):
            # The content was right a moment ago, so what is refused here is a file that went meanwhile.
            return False
        self._discard_copy(path, snapshot.name)
        return True

    def _build(self, spec: NetworkSpec) -> nn.Module:
        teacher = self._spec.teacher
        return build_network(
            spec,
            num_classes=teacher.num_classes,
            task=teacher.task,
            input=teacher.input,
            allowed_factories=self._allowed_factories,
        )

    def _fill(self, network: nn.Module, name: str, field: str) -> None:
        try:
            path = self._storage.fetch(name, self._scratch)
        except FileNotFoundError:
            message = f"{field}: there is no file `{name}` under the storage root; copy the checkpoint there"
            raise UserError("checkpoint_not_found", message) from None
        except PathOutsideStorage as error:
            raise UserError("path_outside_storage", f"{field}: {error}") from error
        load_checkpoint(network, path, field=field)
        self._discard_copy(path, name)

    def _discard_copy(self, path: Path, name: str) -> None:
        if self._storage.local_path(name) is None:
            path.unlink(missing_ok=True)
