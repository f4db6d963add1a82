"""A server without memory takes no new jobs, and lets everything go that makes room."""

from collections.abc import Iterator

import pytest
import redis

from shared.broker import Broker
from shared.jobs import Role, State
from shared.weight_files.inspection import TensorEntry
from shared.weight_files.model import Model
from tests.specs import small_job


@pytest.fixture
def full(broker: Broker) -> Iterator[Broker]:
    """Call ``fill`` when everything is prepared."""
    yield broker
    broker.redis.config_set("maxmemory", "0")


def fill(broker: Broker) -> None:
    broker.redis.config_set("maxmemory", "1")
    with pytest.raises(redis.RedisError):
        broker.jobs.create(small_job())


def test_a_job_can_be_cancelled_and_deleted(full: Broker) -> None:
    job = full.jobs.create(small_job())
    fill(full)
    assert full.jobs.cancel(job.id).state is State.CANCELLED
    full.retention.delete(job.id, lease_seconds=5)
    with pytest.raises(KeyError):
        full.jobs.get(job.id)
    full.retention.files_are_deleted(job.id)


def test_a_running_job_that_is_cancelled_is_let_go_of(full: Broker) -> None:
    job = full.jobs.create(small_job(distillation=None, student=None))
    attempt = full.leases.claim(Role.SYNTHESIS, "a", block_seconds=0.01) or full.leases.claim(Role.SYNTHESIS, "a")
    assert attempt is not None
    fill(full)
    assert full.jobs.cancel(job.id).state is State.CANCELLING
    full.leases.release(attempt, "job stopped")
    assert full.jobs.get(job.id).state is State.CANCELLED


def test_a_model_can_be_deleted(full: Broker) -> None:
    model = Model(
        id="model-" + "0" * 20,
        checkpoint="models/x",
        filename="x",
        created_at=0.0,
        bytes=1,
        sha256="0" * 64,
        format="torch",
        tensor_count=1,
        parameters=1,
        architectures=[],
    )
    full.models.create(model, [TensorEntry(name="a", dtype="F32", shape=[1])])
    fill(full)
    full.models.delete(model.id)
    with pytest.raises(KeyError):
        full.models.get(model.id)
