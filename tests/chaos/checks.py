"""What must hold after a job, whatever happened during it. Each check returns what it found wrong, as text."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.broker import keys
from shared.jobs import JobRecord, Role, State, Task
from shared.shards.format import DamagedShard, read_shard
from shared.storage import job_paths
from shared.tasks.labels import label_format
from tests.chaos.cluster import Cluster


@dataclass
class Findings:
    """Counts of the final report, and the problems in words."""

    lost_images: int = 0
    duplicate_images: int = 0
    failed_jobs: int = 0
    problems: list[str] = field(default_factory=list)


def check_job(cluster: Cluster, job_id: str, findings: Findings, *, server_forgot: bool) -> JobRecord:
    """Everything that a finished job promises, read from Redis and from its folder."""
    record = cluster.broker.jobs.get(job_id)
    if record.state is not State.SUCCEEDED:
        findings.failed_jobs += 1
        findings.problems.append(f"{job_id} {record.name} is {record.state}: {record.error}")
        return record
    problems = [*_images(cluster, record, findings), *_counters(cluster, record, server_forgot)]
    problems += [*_folder(cluster, record), *_one_writer(cluster, job_id)]
    if not server_forgot:  # whose announcements are gone, the worker begins again from the last that is left
        problems += _errors(cluster, job_id)
    findings.problems += [f"{job_id} {record.name}: {problem}" for problem in problems]
    return record


def _images(cluster: Cluster, record: JobRecord, findings: Findings) -> Iterator[str]:
    """Every image number of every partition once, every file as its manifest says, every key once."""
    synthesis = record.parsed_spec().synthesis
    assert synthesis is not None
    teacher = record.parsed_spec().teacher
    labels = label_format(teacher.task, teacher.num_classes, teacher.ignored_label)
    numbers: Counter[tuple[int, int]] = Counter()
    names: Counter[str] = Counter()
    for manifest in cluster.broker.shards.manifests(record.id):
        name = f"{job_paths.shards(record.id)}/{manifest.name}"
        try:
            with cluster.storage.fetched(name, cluster.folder / "checked") as path:
                read_shard(path, manifest, labels)
                names.update(_members(path))
        except (DamagedShard, FileNotFoundError) as damage:
            yield str(damage)
            continue
        numbers.update((manifest.partition, manifest.first_image + place) for place in range(manifest.images))
    promised = {(p, i) for p in range(synthesis.partitions) for i in range(synthesis.images_of_partition(p))}
    lost = len(promised - numbers.keys())
    duplicate = sum(numbers.values()) - len(numbers) + len(numbers.keys() - promised)
    findings.lost_images += lost
    findings.duplicate_images += duplicate
    if lost or duplicate:
        yield f"{lost} images lost, {duplicate} duplicate or beyond the promised"
    if any(count > 1 for count in names.values()):
        yield "sample keys are not unique"


def _members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def _counters(cluster: Cluster, record: JobRecord, server_forgot: bool) -> Iterator[str]:
    spec, result = record.parsed_spec(), record.result or {}
    assert spec.synthesis is not None
    stage = record.stages.synthesis
    shards = cluster.broker.shards.manifests(record.id)
    assert stage is not None
    counted: dict[str, tuple[object, object]] = {
        "result.images": (result.get("images"), spec.synthesis.num_images),
        "synthesis.images": (stage.images, spec.synthesis.num_images),
        "synthesis.progress.done": (stage.progress.done, spec.synthesis.num_images),
        "synthesis.shards": (stage.shards, len(shards)),
        "result.shards": (result.get("shards"), len(shards)),
    }
    if spec.distillation is not None:
        distillation = record.stages.distillation
        assert distillation is not None
        counted |= {
            "result.kd_steps": (result.get("kd_steps"), spec.distillation.steps),
            "distillation.progress.done": (distillation.progress.done, spec.distillation.steps),
        }
        if not server_forgot:  # a distiller keeps a shard that the server has forgotten, and takes its successor too
            counted["distillation.shards_consumed"] = (distillation.shards_consumed, len(shards))
    for name, (found, due) in counted.items():
        if found != due:
            yield f"{name} is {found}, not {due}"


def _folder(cluster: Cluster, record: JobRecord) -> Iterator[str]:
    """The output is what the record says, and there is nothing else."""
    storage, folder = cluster.storage, job_paths.folder(record.id)
    expected = {f"{folder}/{name}" for name in ("index.json", "README.md", "grid.png", "metrics.json")}
    for manifest in cluster.broker.shards.manifests(record.id):
        expected |= {f"{folder}/shards/{manifest.name}", f"{folder}/shards/{manifest.sidecar_name}"}
    if record.stages.distillation is not None:
        name = job_paths.student(record.id)
        expected.add(name)
        found = hashlib.sha256(storage.read_bytes(name)).hexdigest() if storage.exists(name) else None
        if found != (record.result or {}).get("student_sha256"):
            yield "student.safetensors is not the one that was measured"
    samples = 0
    for name in storage.list(job_paths.shards(record.id)):
        if name.endswith(".tar"):
            with storage.fetched(name, cluster.folder / "checked") as path:
                samples += len({member.partition(".")[0] for member in _members(path)})
    synthesis = record.parsed_spec().synthesis
    assert synthesis is not None
    if samples != synthesis.num_images:
        yield f"{samples} samples lie in shards/*.tar, not {synthesis.num_images}"
    previews = f"{job_paths.previews(record.id)}/"  # of each partition one, and what a killed worker left
    files = {name for name in storage.list(folder) if not name.startswith(previews)}
    if files != expected:
        yield f"files missing {sorted(expected - files)}, unexpected {sorted(files - expected)}"


def _one_writer(cluster: Cluster, job_id: str) -> Iterator[str]:
    """Every shard was announced by the attempt that had begun last: no two whose writes both counted."""
    current: dict[str | None, int] = {}
    for event in cluster.broker.reports.events(job_id, limit=100_000):
        if event.type == "attempt_started":
            current[event.task] = int(str(event.data["attempt"]))
        elif event.type == "shard_sealed":
            writer = int(str(event.data["name"]).removesuffix(".tar").rpartition("-")[2])
            if writer != current.get(event.task):
                yield f"attempt {writer} of {event.task} announced during attempt {current.get(event.task)}"


def _errors(cluster: Cluster, job_id: str) -> Iterator[str]:
    """No fault of this kind is the work's own doing, so none may count as an attempt that failed."""
    for event in cluster.broker.reports.events(job_id, limit=100_000):
        if event.type == "attempt_failed":
            yield f"attempt of {event.task} failed: {event.data}"


def check_nothing_is_left(cluster: Cluster, jobs: list[str]) -> Iterator[str]:
    """No queue entry, claim, unfinished file, working file or key beyond the jobs' own."""
    redis = cluster.broker.redis
    for role in Role:
        queue = keys.queue(role)
        if redis.xlen(queue) or redis.xpending(queue, keys.GROUP)["pending"]:
            yield f"{queue} is not empty"
    allowed = {
        keys.HEARD,
        keys.TIDY_AGAIN,
        keys.STORAGE,
        keys.JOBS,
        keys.SWEEPER,
        keys.STATISTICS,
        keys.WORKERS,
        *(keys.queue(role) for role in Role),
    }
    for job in jobs:
        allowed |= {keys.job(job), keys.events(job), keys.shards(job), keys.metrics(job), keys.student(job)}
        allowed |= {keys.metrics_overview(job), keys.metrics_open(job)}
    for key in redis.scan_iter(count=1000):
        if key not in allowed and redis.ttl(key) < 0:
            yield f"key {key} is left"
    if temporaries := cluster.store.unfinished():
        yield f"unfinished files are left: {temporaries}"
    if cluster.scratch_folders():
        yield f"local folders are left: {cluster.scratch_folders()}"
    # A job that did not succeed may be retried, so what it would go on from stays.
    succeeded = [job for job in jobs if cluster.broker.jobs.get(job).state is State.SUCCEEDED]
    work = [job for job in succeeded if cluster.storage.list(job_paths.work(job))]
    if work:
        yield f"working files are left of {work}"


def takeovers(cluster: Cluster, job_id: str) -> int:
    """Attempts that ended because their worker fell silent."""
    return sum(event.type == "attempt_lost" for event in cluster.broker.reports.events(job_id, limit=100_000))


def damaged_shards(cluster: Cluster, job_id: str) -> int:
    """Shards that were found damaged and quarantined."""
    return sum(event.type == "shard_damaged" for event in cluster.broker.reports.events(job_id, limit=100_000))


__all__ = ["Findings", "Task", "check_job", "check_nothing_is_left", "damaged_shards", "takeovers"]
