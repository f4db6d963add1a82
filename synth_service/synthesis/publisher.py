"""Makes shards count: each is announced together with the checkpoint from which the next one is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from shared.shards.format import seal
from shared.shards.manifest import ShardManifest
from shared.storage import job_paths
from shared.worker.turn import Turn
from shared.worker.work_files import WorkFiles, pointer_to


@dataclass(frozen=True)
class ShardEnd:
    """What goes with a shard through the writer: the state from which the next one is made."""

    state: bytes
    rounds: int
    seconds: float
    losses: Mapping[str, float]


class ShardPublisher:
    """The shards and checkpoints of one attempt at a partition.

    Args:
        turn: the attempt.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._files = WorkFiles(turn)
        self._checkpoint_name: str | None = None

    def resume(self, pointer: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The inverter's state at the end of the last announced shard; None where there is none, or it is lost.

        Args:
            pointer: as the broker has it.
        """
        attempt = self._turn.attempt
        self._checkpoint_name = pointer["name"] if pointer else None
        prefixes = (
            job_paths.checkpoint_prefix(attempt.job_id, attempt.task),
            job_paths.staged_prefix(attempt.job_id, attempt.task.partition),
        )
        self._files.adopt(prefixes, in_use={self._checkpoint_name})
        return self._files.load(pointer) if pointer else None

    def announce(self, manifest: ShardManifest, end: ShardEnd) -> None:
        """Stores the state at the shard's end, puts the shard among the others and announces both.

        Raises:
            LeaseLost: another attempt has the task; the shard does not count and its files are gone.
        """
        turn, attempt, shards = self._turn, self._turn.attempt, self._turn.broker.shards
        name = job_paths.checkpoint(attempt.job_id, attempt.task, attempt.number, manifest.index)
        pointer = pointer_to(name, end.state, rounds=end.rounds, synthesis_seconds=end.seconds)
        staging, folder = job_paths.staging(attempt.job_id), job_paths.shards(attempt.job_id)

        def write() -> None:
            turn.storage.put_bytes(end.state, name)
            turn.broker.leases.renew(attempt)  # nobody who was declared dead puts a shard among the others
            seal(turn.storage, staging, folder, manifest)

        self._files.publish(
            name,
            f"{folder}/{manifest.sidecar_name}",
            f"{folder}/{manifest.name}",
            job_paths.staged_shard(attempt.job_id, manifest.name),
            write=write,
            fence=partial(shards.announce, attempt, manifest, pointer),
            counted=partial(shards.is_announced, manifest),
            instead_of=self._checkpoint_name,
        )
        self._checkpoint_name = name
