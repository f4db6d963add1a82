"""The application over a real server and a local storage, and jobs brought into their states by a real broker."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.broker import Attempt, Broker
from shared.jobs import JobRecord, Role
from shared.settings import Settings
from shared.shards.manifest import ShardManifest, shard_name
from shared.specs import JobSpec
from shared.storage import Storage, job_paths
from synth_service.api.app import create_app

CHECKPOINT = "teachers/digits.safetensors"


@pytest.fixture
def settings(redis_url: str, storage: Storage) -> Settings:
    return Settings(
        redis_url=redis_url,
        storage=storage.root,
        max_queued_jobs=5,
        max_body_bytes=20_000,
        allowed_hosts=("testserver",),
        max_requests_per_second=0,
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def written(storage: Storage) -> dict[str, Any]:
    """A small job as a client writes it; its teacher's checkpoint is there."""
    storage.put_bytes(b"weights", CHECKPOINT)
    return {
        "name": "digits",
        "teacher": {"arch": "resnet20", "num_classes": 10, "checkpoint": CHECKPOINT},
        "student": {"arch": "resnet8"},
        "synthesis": {"num_images": 8, "batch_size": 4},
        "distillation": {"steps": 10, "warmup_batches": 0},
    }


@pytest.fixture
def job(broker: Broker, written: dict[str, Any]) -> JobRecord:
    """A queued job."""
    return broker.jobs.create(JobSpec.model_validate(written))


def claim(broker: Broker, role: Role) -> Attempt:
    # The first claim makes the consumer group and finds nothing.
    attempt = broker.leases.claim(role, "tester", block_seconds=0.01) or broker.leases.claim(role, "tester")
    assert attempt is not None
    return attempt


def announce(
    broker: Broker, storage: Storage, attempt: Attempt, index: int, content: bytes = b"tar" * 100
) -> ShardManifest:
    """Seals a shard of four images as a worker does."""
    manifest = ShardManifest(
        name=shard_name(attempt.job_id, attempt.task.partition, index, attempt.number),
        job=attempt.job_id,
        partition=attempt.task.partition,
        index=index,
        attempt=attempt.number,
        images=4,
        bytes=len(content),
        sha256=sha256(content).hexdigest(),
        class_counts={0: 4},
        first_image=4 * index,
        student_version=0,
        channels=3,
        height=32,
        width=32,
        image_format="png",
        created_at=1.0,
    )
    folder = Path(job_paths.shards(attempt.job_id))
    storage.put_bytes(content, str(folder / manifest.name))
    storage.put_bytes(manifest.model_dump_json().encode(), str(folder / manifest.sidecar_name))
    broker.shards.announce(attempt, manifest, {"index": index})
    return manifest


def complete(broker: Broker, storage: Storage, *, result: dict[str, Any] | None = None) -> None:
    """Runs the queued job to its end."""
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    for index in range(2):
        announce(broker, storage, synthesis, index)
    assert broker.leases.finish(synthesis) == "ok"
    broker.shards.consumed(distillation, shards=2, images=8)
    assert broker.leases.finish(distillation) == "last"
    assert broker.leases.finish(distillation, folder_completed=True, result=result or {"images": 8}) == "ok"
