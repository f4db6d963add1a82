"""The end of a job: whoever finishes the last task completes the output folder.

Every shard is compared with its manifest once more before the folder counts as complete: one that was damaged
after the distiller had read it, or that no distiller ever read, is made again as well. The broker says who is
last before the task counts as finished, so a crash in the middle leaves a task that is claimed again and
completes the folder once more; every step here can be repeated.
"""

from __future__ import annotations

import json
from typing import Any

from shared.jobs import Role, tasks_of
from shared.shards.dataset_folder import remove_unlisted, write_dataset_card, write_index
from shared.shards.picture_grid import write_grid
from shared.storage import job_paths
from shared.tasks.labels import label_format
from shared.tasks.quality import judge, measures_of_job
from shared.worker.quarantine import verify_all
from shared.worker.turn import Turn


def finish(turn: Turn, measured: dict[str, Any]) -> bool:
    """Ends the turn's task, completing the output folder if it is the job's last.

    Args:
        turn: the attempt, whose own work is done.
        measured: what goes into the job's result beside what synthesis says.

    Returns:
        False when quarantined shards must be made again first; the turn then goes on.
    """
    leases = turn.broker.leases
    answer = leases.finish(turn.attempt)
    if answer == "last":
        if not verify_all(turn, consumed=turn.attempt.task.role is Role.DISTILLATION):
            return False
        result = turn.persist(lambda: _complete_folder(turn, measured))
        answer = leases.finish(turn.attempt, folder_completed=True, result=result)
        if answer == "ok":
            turn.storage.delete_tree(job_paths.work(turn.attempt.job_id))
    return answer != "more"


def _complete_folder(turn: Turn, measured: dict[str, Any]) -> dict[str, Any]:
    """Writes index, card, grid and metrics; returns the job's result."""
    job_id, storage, broker = turn.attempt.job_id, turn.storage, turn.broker
    folder = job_paths.folder(job_id)
    present = storage.list(job_paths.shards(job_id))
    broker.leases.renew(turn.attempt)  # only whoever still has the task may remove anything
    manifests = broker.shards.manifests(job_id)
    result: dict[str, Any] = {}
    if manifests:
        checkpoints = [broker.checkpoints.pointer(job_id, task) for task in tasks_of(turn.spec)]
        seconds = sum(each.get("synthesis_seconds", 0.0) for each in checkpoints if each)
        images = sum(manifest.images for manifest in manifests)
        result |= {
            "images": images,
            "shards": len(manifests),
            "synthesis_seconds": round(seconds, 3),
            "synthesis_images_per_second": round(images / seconds, 3) if seconds else None,
            "grid": job_paths.grid(job_id),
        }
        teacher = turn.spec.teacher
        labels = label_format(teacher.task, teacher.num_classes, teacher.ignored_label)
        remove_unlisted(storage, folder, manifests, present)
        write_grid(storage, folder, manifests, turn.scratch, labels=labels)
        write_index(storage, folder, manifests, name=turn.spec.name or job_id)
        write_dataset_card(storage, folder, manifests, turn.spec, grid=job_paths.grid(job_id).rpartition("/")[2])
    result |= measured
    if "quality" not in result:
        # Nobody trained on these images: what the synthesis reported is all there is to judge them by.
        measures = measures_of_job(turn.spec, broker.reports.metrics(job_id))
        result["quality"] = judge(measures, is_final=False).model_dump(mode="json")
    metrics = {"job": job_id, "result": result, "series": broker.reports.metrics(job_id)}
    storage.put_bytes(json.dumps(metrics, indent=1).encode(), job_paths.metrics(job_id))
    return result
