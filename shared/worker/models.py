"""Teachers and students of a job, as workers load them: built from the spec, filled from the storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch import nn

from shared import seeds
from shared.broker import StudentSnapshot
from shared.errors import UserError
from shared.networks.building import build_network_of
from shared.networks.rehearsal import rehearse_inversion, rehearse_training
from shared.networks.weights import load_checkpoint, read_weights
from shared.specs import JobSpec, NetworkSpec
from shared.storage import PathOutsideStorage, Storage
from shared.storage.digests import file_sha256
from shared.tasks.base import build_task
from shared.worker.trial import TrialFailed, try_in_child

BUILD_SECONDS: Final = 120.0
READ_SECONDS: Final = 60.0
READ_BYTES_PER_SECOND: Final = 10_000_000
"""A checkpoint may take ``READ_SECONDS`` and a second more for so many bytes of it, on the slowest of disks."""


class Models:
    """Builds the networks of one job.

    Args:
        spec: the job.
        storage: where the checkpoints are.
        scratch: local folder for copies of remote files.
        allowed_factories: as in the settings.
        check: called while strangers' data is looked into; what it raises ends that.
    """

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        scratch: Path,
        allowed_factories: tuple[str, ...],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        self._spec = spec
        self._storage = storage
        self._scratch = scratch
        self._allowed_factories = allowed_factories
        teacher = spec.teacher
        self.task = build_task(teacher.task, teacher.num_classes, teacher.ignored_label)
        """What both networks do."""

    def teacher(self, *, is_inverted: bool = False) -> nn.Module:
        """The teacher with its weights, on the CPU.

        Args:
            is_inverted: its gradient with respect to images will be asked for.

        Raises:
            UserError: it cannot be built, its checkpoint is missing or foreign, or it has no such gradient.
        """
        network = self._build(self._spec.teacher, "teacher")
        self._fill(network, self._spec.teacher.checkpoint, "teacher.checkpoint")
        if is_inverted:
            rehearse_inversion(network, task=self.task, input=self._spec.teacher.input, field="teacher.arch")
        return network

    def student(self, *, is_inverted: bool = False) -> nn.Module:
        """The student as it starts: from its checkpoint, or initialized from the job's seed. On the CPU.

        Args:
            is_inverted: as for the teacher. If not, it will be trained.

        Raises:
            UserError: as for the teacher, or it cannot be trained.
        """
        spec = self._spec.student
        assert spec is not None
        with seeds.seeded_globally(self._spec.seed, seeds.STUDENT):
            network = self._build(spec, "student")
        if spec.checkpoint is not None:
            self._fill(network, spec.checkpoint, "student.checkpoint")
        rehearse = rehearse_inversion if is_inverted else rehearse_training
        rehearse(network, task=self.task, input=self._spec.teacher.input, field="student.arch")
        return network

    def fill_from_snapshot(self, network: nn.Module, snapshot: StudentSnapshot) -> bool:
        """Loads a published snapshot into a student. False when a newer one has replaced it meanwhile."""
        try:
            with self._storage.fetched(snapshot.name, self._scratch) as path:
                if file_sha256(path) != snapshot.sha256:
                    return False
                load_checkpoint(network, path, field="student snapshot")
        except (FileNotFoundError, UserError):
            # The content was right a moment ago, so what is refused here is a file that went meanwhile.
            return False
        return True

    def _build(self, spec: NetworkSpec, field: str) -> nn.Module:
        def build() -> nn.Module:
            return build_network_of(self._spec, spec, self._allowed_factories)

        if spec.kwargs:
            # Arguments can ask for a network without end; names alone cannot.
            self._try(build, BUILD_SECONDS, f"{field}.kwargs", "arguments_too_large", "build the network")
        return build()

    def _try(self, work: Callable[[], object], seconds: float, field: str, code: str, what: str) -> None:
        """Raises UserError with the code where the work takes too long or too much memory."""
        try:
            try_in_child(work, seconds=seconds, check=self._check)
        except TrialFailed as failed:
            problem = (
                f"takes more than {seconds:.0f} s" if failed.reason == "late" else "takes more memory than there is"
            )
            raise UserError(code, f"{field}: to {what} {problem}; use a smaller one") from None

    def _fill(self, network: nn.Module, name: str, field: str) -> None:
        try:
            with self._storage.fetched(name, self._scratch) as path:
                seconds = READ_SECONDS + path.stat().st_size / READ_BYTES_PER_SECOND
                what = f"read `{path.name}`"
                self._try(lambda: read_weights(path, field), seconds, field, "checkpoint_too_large", what)
                load_checkpoint(network, path, field=field)
        except FileNotFoundError:
            message = f"{field}: there is no file `{name}` under the storage root; copy the checkpoint there"
            raise UserError("checkpoint_not_found", message) from None
        except PathOutsideStorage as error:
            raise UserError("path_outside_storage", f"{field}: {error}") from error
