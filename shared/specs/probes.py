"""How long a job will take and how much memory, worked out from short measurements of both halves.

A probe does a few real steps at the job's shapes, with weights that do not matter for that. Here is what it says and
what follows from it; ``synth_service.synthesis.probe`` and ``distiller.probe`` do the steps.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, Field

from shared.specs.estimates import estimate
from shared.specs.job import JobSpec

Half = Literal["synthesis", "distillation"]

WITHOUT_INFLUENCE = {
    "synthesis": {"num_images", "partitions", "max_backlog", "batches_per_shard", "image_format", "preset"},
    "distillation": {"steps", "steps_per_batch", "warmup_batches", "pacing", "pool_capacity", "full_pool_share"}
    | {"snapshot_every_steps", "export", "learning_rate", "final_learning_rate", "learning_rate_warmup_steps"},
}
"""Settings that change how much is done, but not how long one round or step takes."""

LONG_HOURS = 24.0


class Probe(BaseModel):
    """What a probe measured."""

    seconds: float = Field(gt=0, description="Of a round of synthesis, or of a step of distillation.")
    measured: int = Field(ge=1, description="Rounds or steps, or where one took too long steps of a round, measured.")
    peak_bytes: int = Field(ge=0, description="Most memory of the process; on a GPU, of the device.")
    device: str = Field(description="What was computed on.")


class TimeEstimate(BaseModel):
    """A job's time and memory. Null where it has no such half."""

    seconds_per_round: float | None = Field(description="Of synthesis: one batch.")
    seconds_per_step: float | None = Field(description="Of distillation.")
    synthesis_hours: float | None = Field(description="With a worker for each partition.")
    distillation_hours: float | None = Field(description="On one distiller.")
    hours: float = Field(description="In all, where both halves have a machine of their own.")
    hours_on_one_machine: float = Field(description="In all, where they share the one that was probed.")
    synthesis_peak_bytes: int | None = Field(description="Memory of one synthesis worker.")
    distillation_peak_bytes: int | None = Field(description="Memory of the distiller, with its pool.")
    warnings: list[str] = Field(description="What will not fit, with what to do about it.")


def probe_key(spec: JobSpec, half: Half, machine: str) -> str:
    """The same for jobs whose rounds or steps take the same time on the same machine."""
    whole = spec.model_dump(mode="json")
    settings: dict[str, Any] = whole[half] or {}
    networks = [{**whole[name], "checkpoint": ""} for name in ("teacher", "student") if whole[name]]
    kept = {name: value for name, value in settings.items() if name not in WITHOUT_INFLUENCE[half]}
    text = json.dumps([half, networks, kept, whole.get("precision"), machine], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def estimate_time(
    spec: JobSpec,
    synthesis: Probe | None,
    distillation: Probe | None,
    *,
    pool_memory_bytes: int,
    pool_disk_bytes: int,
    memory_bytes: int,
) -> TimeEstimate:
    """What the probes come to for a whole job.

    Args:
        spec: validated.
        synthesis, distillation: of its halves, None where it has none.
        pool_memory_bytes, pool_disk_bytes: of the deployment's settings.
        memory_bytes: of the machine or device that was probed.
    """
    counts = estimate(spec)
    made = 0.0
    if synthesis is not None and spec.synthesis is not None:
        batches = math.ceil(spec.synthesis.images_of_partition(0) / spec.synthesis.batch_size)
        made = batches * synthesis.seconds / 3600
    all_made = made * (spec.synthesis.partitions if spec.synthesis else 1)
    trained = (counts.kd_steps or 0) * distillation.seconds / 3600 if distillation is not None else 0.0
    is_lockstep = spec.distillation is not None and spec.distillation.pacing == "lockstep"
    # What waits for the last image is trained after synthesis; the rest beside it.
    tail = trained * (spec.distillation.full_pool_share if spec.distillation else 0.0)
    apart = made + trained if is_lockstep else max(made + tail, trained)
    pool = min(counts.pool_bytes or 0, pool_memory_bytes) if distillation is not None else 0
    distiller_bytes = distillation.peak_bytes + pool if distillation is not None else None
    result = TimeEstimate(
        seconds_per_round=synthesis.seconds if synthesis else None,
        seconds_per_step=distillation.seconds if distillation else None,
        synthesis_hours=made if synthesis else None,
        distillation_hours=trained if distillation else None,
        hours=apart,
        hours_on_one_machine=all_made + trained,
        synthesis_peak_bytes=synthesis.peak_bytes if synthesis else None,
        distillation_peak_bytes=distiller_bytes,
        warnings=[],
    )
    if result.hours > LONG_HOURS:
        result.warnings.append(
            f"the job takes about {result.hours:.0f} hours: use fewer synthesis.steps or num_images, or more partitions"
        )
    if spec.synthesis is not None and counts.pool_bytes and counts.pool_bytes > pool_memory_bytes + pool_disk_bytes:
        result.warnings.append(
            f"the distiller's pool takes {counts.pool_bytes / 1e9:.1f} GB and may take "
            f"{(pool_memory_bytes + pool_disk_bytes) / 1e9:.1f} GB: use a smaller distillation.pool_capacity, or raise "
            "DFKD_POOL_DISK_BYTES"
        )
    for name, peak, field in (
        ("synthesis", result.synthesis_peak_bytes, "synthesis.batch_size"),
        ("distillation", result.distillation_peak_bytes, "distillation.batch_size"),
    ):
        if peak is not None and peak > memory_bytes:
            result.warnings.append(
                f"{name} takes {peak / 1e9:.1f} GB of memory and there are {memory_bytes / 1e9:.1f} GB: use a smaller "
                f"{field}"
            )
    return result
