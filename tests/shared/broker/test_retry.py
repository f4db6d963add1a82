"""Failed and cancelled jobs that are to go on."""

import secrets
import threading

import pytest

from shared.broker import Attempt, Broker, JobSucceeded, JobUnfinished, LeaseLost, QueueFull, keys
from shared.errors import UserError
from shared.jobs import JobError, JobRecord, Role, State, Task
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job

ERROR = JobError(code="internal_error", message="x")


@pytest.fixture
def failed(broker: Broker) -> tuple[JobRecord, Attempt]:
    """A job of two partitions: one made a shard and failed, one still runs, the distiller had begun."""
    job = broker.jobs.create(small_job(synthesis={"partitions": 2}))
    first, running, distiller = claim(broker), claim(broker), claim(broker, Role.DISTILLATION)
    broker.shards.announce(first, manifest_of(first, 0), {"name": "a checkpoint"})
    broker.leases.release(distiller, "stopping")
    broker.leases.fail(first, UserError("bad", "x"))
    return broker.jobs.get(job.id), running


def test_a_failed_job_goes_on_from_what_it_has(broker: Broker, failed: tuple[JobRecord, Attempt]) -> None:
    job, _ = failed
    before = broker.shards.position(job.id, Task(Role.SYNTHESIS, 0))
    assert before.checkpoint == {"name": "a checkpoint"}

    again = broker.jobs.retry(job.id)

    assert (again.state, again.error, again.finished_at, again.retries) == (State.QUEUED, None, None, 1)
    assert again.stages.synthesis is not None
    assert [(each.state, each.error) for each in again.stages.synthesis.partitions] == [(State.QUEUED, None)] * 2
    assert len(broker.shards.manifests(job.id)) == 1
    attempts = [claim(broker), claim(broker), claim(broker, Role.DISTILLATION)]
    assert {(str(attempt.task), attempt.number) for attempt in attempts} == {
        ("synthesis:0", 2),
        ("synthesis:1", 2),
        ("distillation:0", 2),
    }
    assert broker.shards.position(job.id, Task(Role.SYNTHESIS, 0)) == before
    assert broker.jobs.get(job.id).state is State.RUNNING


def test_a_worker_that_had_not_heard_of_the_end_cannot_end_the_job_again(
    broker: Broker, failed: tuple[JobRecord, Attempt]
) -> None:
    job, running = failed
    broker.jobs.retry(job.id)
    with pytest.raises(LeaseLost):
        broker.leases.fail(running, UserError("bad", "of before"))
    with pytest.raises(LeaseLost):
        broker.leases.release(running, "job stopped")
    with pytest.raises(LeaseLost):
        broker.shards.announce(running, manifest_of(running, 0), {})
    assert broker.jobs.get(job.id).state is State.QUEUED
    for role, count in ((Role.SYNTHESIS, 2), (Role.DISTILLATION, 1)):
        assert broker.redis.xlen(keys.queue(role)) == count


def test_tasks_that_have_succeeded_are_not_done_again(broker: Broker) -> None:
    job = broker.jobs.create(small_job(synthesis={"num_images": 16}, distillation={"warmup_batches": 0}))
    synthesis = claim(broker)
    broker.shards.announce(synthesis, manifest_of(synthesis, 0), {})
    assert broker.leases.finish(synthesis) == "ok"
    broker.jobs.cancel(job.id)

    broker.jobs.retry(job.id)

    assert broker.leases.claim(Role.SYNTHESIS, "w", block_seconds=0.01) is None
    distiller = claim(broker, Role.DISTILLATION)
    assert broker.leases.finish(distiller) == "last"
    assert broker.leases.finish(distiller, folder_completed=True) == "ok"
    assert broker.jobs.get(job.id).state is State.SUCCEEDED
    with pytest.raises(JobSucceeded):
        broker.jobs.retry(job.id)


def test_only_a_job_that_has_ended_is_retried(broker: Broker) -> None:
    job = broker.jobs.create(small_job())
    with pytest.raises(JobUnfinished):
        broker.jobs.retry(job.id)
    attempt = claim(broker)
    broker.jobs.cancel(job.id)
    with pytest.raises(JobUnfinished):
        broker.jobs.retry(job.id)
    broker.leases.release(attempt, "job stopped")
    assert broker.jobs.retry(job.id).state is State.QUEUED
    with pytest.raises(KeyError):
        broker.jobs.retry("job-none")


def test_the_failures_of_before_do_not_count(broker: Broker) -> None:
    job = broker.jobs.create(small_job())
    for _ in range(3):
        broker.leases.retry(claim(broker), ERROR)
    assert broker.jobs.get(job.id).state is State.FAILED
    broker.jobs.retry(job.id)
    broker.leases.retry(claim(broker), ERROR)
    assert broker.jobs.get(job.id).state is State.RUNNING


def test_of_many_requests_at_once_one_succeeds(broker: Broker, failed: tuple[JobRecord, Attempt]) -> None:
    job, _ = failed
    outcomes: list[str] = []

    def retry() -> None:
        try:
            broker.jobs.retry(job.id)
            outcomes.append("ok")
        except JobUnfinished:
            outcomes.append("unfinished")

    threads = [threading.Thread(target=retry) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ok"] + ["unfinished"] * 7
    assert [event.type for event in broker.reports.events(job.id)].count("job_retried") == 1


def test_a_command_that_is_sent_twice_is_one_retry(
    broker: Broker, failed: tuple[JobRecord, Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a connection that breaks before the answer makes redis-py do."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "the same")
    assert broker.jobs.retry(failed[0].id).retries == broker.jobs.retry(failed[0].id).retries == 1


def test_a_full_deployment_takes_no_job_back(broker: Broker, failed: tuple[JobRecord, Attempt]) -> None:
    broker.jobs.create(small_job())
    with pytest.raises(QueueFull):
        broker.jobs.retry(failed[0].id, max_unfinished=1)
    assert broker.jobs.get(failed[0].id).state is State.FAILED
