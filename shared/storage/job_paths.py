"""Where the files of a job lie under the storage root. No other module spells these names.

``work/`` holds what only workers read (checkpoints, student snapshots) and goes when the job ends; the rest
is the job's output.
"""

from typing import Final

from shared.jobs import Task
from shared.specs import ExportFormat

EXPORT_NAMES: Final[dict[ExportFormat, str]] = {
    "torchscript": "student.torchscript.pt",
    "torch-export": "student.pt2",
    "onnx": "student.onnx",
}


def folder(job_id: str) -> str:
    """Output folder of a job."""
    return f"jobs/{job_id}"


def shards(job_id: str) -> str:
    """Folder of the sealed shards."""
    return f"{folder(job_id)}/shards"


def student(job_id: str) -> str:
    """The trained student."""
    return f"{folder(job_id)}/student.safetensors"


def exported_student(job_id: str, format: ExportFormat) -> str:
    """The trained student as a program."""
    return f"{folder(job_id)}/{EXPORT_NAMES[format]}"


def grid(job_id: str) -> str:
    """Picture grid of synthetic images."""
    return f"{folder(job_id)}/grid.png"


def previews(job_id: str) -> str:
    """Folder of the partitions' newest images; see ``shared.shards.previews``."""
    return f"{folder(job_id)}/preview"


def preview(job_id: str, partition: int, attempt: int, images: int) -> str:
    """Newest images of a partition of which an attempt has made so many."""
    return f"{preview_prefix(job_id, partition)}{attempt:02d}-{images:09d}.png"


def preview_prefix(job_id: str, partition: int) -> str:
    """With what the names of all previews of a partition begin."""
    return f"{previews(job_id)}/{partition:02d}-"


def parse_preview(name: str) -> tuple[int, int, int]:
    """(partition, attempt, images) of a preview's name."""
    partition, attempt, images = name.rpartition("/")[2].removesuffix(".png").split("-")
    return int(partition), int(attempt), int(images)


def metrics(job_id: str) -> str:
    """Everything that was measured, as JSON."""
    return f"{folder(job_id)}/metrics.json"


def work(job_id: str) -> str:
    """Folder of the workers' own files."""
    return f"{folder(job_id)}/work"


def checkpoint(job_id: str, task: Task, attempt: int, number: int) -> str:
    """A worker's checkpoint. The attempt keeps a paused worker from overwriting its successor's."""
    return f"{checkpoint_prefix(job_id, task)}{attempt:02d}-{number:09d}.pt"


def checkpoint_prefix(job_id: str, task: Task) -> str:
    """With what the names of all checkpoints of a task begin."""
    return f"{work(job_id)}/{task.role}-{task.partition:02d}-"


def staged_shard(job_id: str, shard_name: str) -> str:
    """A shard that is written and not announced, where no reader of ``shards/*.tar`` finds it."""
    return f"{staging(job_id)}/{shard_name}"


def staging(job_id: str) -> str:
    """Folder of the staged shards."""
    return f"{work(job_id)}/shards"


def staged_prefix(job_id: str, partition: int) -> str:
    """With what the names of all staged shards of a partition begin."""
    return f"{staging(job_id)}/{job_id}-{partition:02d}-"


def snapshot(job_id: str, attempt: int, version: int) -> str:
    """A student snapshot for the adversarial term."""
    return f"{snapshot_prefix(job_id)}{attempt:02d}-{version:09d}.safetensors"


def snapshot_prefix(job_id: str) -> str:
    """With what the names of all student snapshots of a job begin."""
    return f"{work(job_id)}/student-"
