"""What faults may do to students: nothing under lockstep, as long as the shards stay what they were."""

from __future__ import annotations

import hashlib
import math
import statistics
from dataclasses import dataclass, field

from safetensors.torch import load

from shared.jobs import JobRecord
from shared.storage import job_paths
from shared.tasks import task_of
from tests.chaos.cluster import Cluster
from tests.chaos.faults import DAMAGE

ALTERING = {*DAMAGE, "crash_server_machine"}
"""After these, other images take the place of what was lost, so the student is another one."""

SPREADS = {"lockstep": 0.030, "free": 0.0032, "partitioned": 0.0174, "segmentation": 0.0015}
"""Standard deviations of undisturbed students, measured: over eight seeds where a run repeats exactly, else over eight
runs of one seed (four of segmentation)."""

TOLERANCE = 0.02
"""Granted to the mean of harmed students at least, whose steps met other images."""


@dataclass
class Students:
    """Accuracy of the students of undisturbed and of harmed jobs, by shape."""

    undisturbed: dict[str, list[float]] = field(default_factory=dict)
    harmed: dict[str, list[float]] = field(default_factory=dict)
    _due: dict[str, str] = field(default_factory=dict)
    """Digest of the weights of an undisturbed student, for shapes that repeat exactly."""

    def note_undisturbed(self, cluster: Cluster, record: JobRecord) -> None:
        """A student that the others are measured against."""
        accuracy = _accuracy(record)
        if accuracy is not None:
            self.undisturbed.setdefault(record.name, []).append(accuracy)
            if _is_repeatable(record):
                self._due[record.name] = _weights(cluster, record.id)

    def note_harmed(self, cluster: Cluster, record: JobRecord, kinds: set[str]) -> list[str]:
        """A student of a job during which these kinds of faults struck.

        Returns:
            What is wrong with it, in words. A student of free pacing depends on the clock; ``problems`` compares
            their means.
        """
        accuracy = _accuracy(record)
        if accuracy is None:
            return []
        self.harmed.setdefault(record.name, []).append(accuracy)
        is_due = _is_repeatable(record) and not kinds & ALTERING
        if is_due and _weights(cluster, record.id) != self._due[record.name]:
            due = self.undisturbed[record.name][-1]
            return [f"{record.id}: another student ({accuracy}) than undisturbed ({due}), after {sorted(kinds)}"]
        return []

    def problems(self) -> list[str]:
        """Shapes whose students are worse on average than chance explains."""
        found = []
        for shape, accuracies in self.harmed.items():
            due = self.undisturbed[shape]
            tolerance = max(TOLERANCE, 3 * SPREADS[shape] * math.sqrt(1 / len(accuracies) + 1 / len(due)))
            mean, mean_due = statistics.mean(accuracies), statistics.mean(due)
            if mean < mean_due - tolerance:
                found.append(f"{shape}: students {mean:.4f} on average, undisturbed {mean_due:.4f}")
        return found


def _is_repeatable(record: JobRecord) -> bool:
    distillation = record.parsed_spec().distillation
    return distillation is not None and distillation.pacing == "lockstep"


def _accuracy(record: JobRecord) -> float | None:
    measured = (record.result or {}).get(task_of(record).headline_metric.name)
    return None if measured is None else round(float(str(measured)), 4)


def _weights(cluster: Cluster, job_id: str) -> str:
    """Of the tensors alone: the header of the file names the job."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load(cluster.storage.read_bytes(job_paths.student(job_id))).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
