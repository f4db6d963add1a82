"""What operators watch: right after any history, and asked for in one round trip however long that was."""

from typing import Any

import pytest

from shared.broker import Attempt, Broker, keys
from shared.broker.statistics import QueueState
from shared.errors import UserError
from shared.jobs import JobRecord, Role, State
from tests.shared.broker.manifests import manifest_of
from tests.specs import small_job
from tests.waiting import wait_until


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job())


def claim(broker: Broker, role: Role, worker: str = "worker") -> Attempt:
    return wait_until(lambda: broker.leases.claim(role, worker, block_seconds=0.01))


def announce(broker: Broker, attempt: Attempt, *indices: int) -> None:
    for index in indices:
        broker.shards.announce(attempt, manifest_of(attempt, index), {})


def states(broker: Broker) -> dict[State, int]:
    return {state: count for state, count in broker.statistics.snapshot().jobs.items() if count}


def test_nothing_is_zero(broker: Broker) -> None:
    snapshot = broker.statistics.snapshot()
    assert set(snapshot.jobs.values()) == {0}
    assert set(snapshot.jobs) == set(State)
    assert snapshot.queues == dict.fromkeys(Role, QueueState(0, 0, 0.0, 0.0))
    assert (snapshot.images, snapshot.distillation_steps, snapshot.shard_lag, snapshot.workers) == (0, 0, 0, [])


def test_a_job_is_counted_in_one_state_at_a_time(broker: Broker, job: JobRecord) -> None:
    other = broker.jobs.create(small_job())
    assert states(broker) == {State.QUEUED: 2}
    attempt = claim(broker, Role.SYNTHESIS)
    assert states(broker) == {State.QUEUED: 1, State.RUNNING: 1}
    broker.jobs.cancel(job.id)
    assert states(broker) == {State.QUEUED: 1, State.CANCELLING: 1}
    broker.leases.release(attempt, "job stopped")
    broker.jobs.cancel(other.id)
    assert states(broker) == {State.CANCELLED: 2}
    broker.jobs.retry(job.id)
    assert states(broker) == {State.QUEUED: 1, State.CANCELLED: 1}
    broker.retention.delete(other.id, lease_seconds=5)
    assert states(broker) == {State.QUEUED: 1}


def test_counters_outlive_the_jobs_that_they_counted(broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    announce(broker, synthesis, 0, 1)
    announce(broker, synthesis, 1)  # again, as after a lost answer
    broker.leases.renew(distillation, done=7)
    broker.leases.fail(synthesis, UserError("bad", "x"))
    broker.leases.release(distillation, "job stopped")
    broker.retention.delete(job.id, lease_seconds=0)

    snapshot = broker.statistics.snapshot()
    assert (snapshot.images, snapshot.shard_bytes, snapshot.distillation_steps) == (32, 2, 7)
    assert snapshot.events["job_created", ""] == snapshot.events["job_failed", ""] == 1
    assert snapshot.events["attempt_started", "synthesis"] == snapshot.events["attempt_started", "distillation"] == 1
    assert set(snapshot.jobs.values()) == {0}


def test_steps_that_a_successor_repeats_count_again_and_never_backwards(broker: Broker, job: JobRecord) -> None:
    seen = []
    first = claim(broker, Role.DISTILLATION)
    for done in (5, 10, 10):
        broker.leases.renew(first, done=done)
        seen.append(broker.statistics.snapshot().distillation_steps)
    broker.leases.release(first, "stopping")
    second = claim(broker, Role.DISTILLATION)
    for done in (8, 12):
        broker.leases.renew(second, done=done)
        seen.append(broker.statistics.snapshot().distillation_steps)
    assert seen == [5, 10, 10, 10, 14]


def test_a_shard_that_is_made_again_counts_again(broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    announce(broker, synthesis, 0)
    (shard,) = broker.shards.until(job.id)
    broker.shards.quarantine(distillation, shard, "cut")
    broker.shards.announce(synthesis, manifest_of(synthesis, 1, first_image=0), {})
    snapshot = broker.statistics.snapshot()
    assert (snapshot.images, snapshot.events["shard_damaged", "synthesis"]) == (32, 1)


def test_the_queue_tells_tasks_that_wait_from_those_that_somebody_has(broker: Broker) -> None:
    broker.jobs.create(small_job(synthesis={"partitions": 2}))

    def queue() -> QueueState:
        return broker.statistics.snapshot().queues[Role.SYNTHESIS]

    assert (queue().tasks, queue().waiting) == (2, 2)
    first = claim(broker, Role.SYNTHESIS, "a")
    assert (queue().tasks, queue().waiting) == (2, 1)
    claim(broker, Role.SYNTHESIS, "b")
    wait_until(lambda: queue().oldest_seconds > 0)
    assert (queue().tasks, queue().waiting, queue().oldest_waiting_seconds) == (2, 0, 0.0)
    broker.leases.release(first, "stopping")
    assert (queue().tasks, queue().waiting) == (2, 1)
    assert queue().oldest_waiting_seconds == pytest.approx(queue().oldest_seconds, abs=1.0)


def test_the_age_of_a_task_is_counted_from_when_it_was_queued(broker: Broker) -> None:
    seconds = int(broker.redis.time()[0])
    broker.redis.xadd(keys.queue(Role.DISTILLATION), {"job": "job-gone", "partition": 0}, id=f"{seconds - 90}000-0")
    queue = broker.statistics.snapshot().queues[Role.DISTILLATION]
    assert queue.oldest_seconds == queue.oldest_waiting_seconds == pytest.approx(90, abs=2)


def test_the_lag_is_what_was_announced_and_not_yet_consumed(broker: Broker, job: JobRecord) -> None:
    only_images = broker.jobs.create(small_job(distillation=None, student=None))
    first, second = claim(broker, Role.SYNTHESIS), claim(broker, Role.SYNTHESIS)
    assert second.job_id == only_images.id
    announce(broker, first, 0, 1, 2)
    announce(broker, second, 0)
    snapshot = broker.statistics.snapshot()
    assert (snapshot.shard_lag, snapshot.greatest_shard_lag) == (3, 3)
    broker.shards.consumed(claim(broker, Role.DISTILLATION), shards=2, images=32)
    assert broker.statistics.snapshot().shard_lag == 1


def test_workers_show_how_long_they_have_been_silent(broker: Broker) -> None:
    broker.workers.register("busy", {"role": "synthesis", "job": "job-1"}, ttl_seconds=60)
    broker.workers.register("idle", {"role": "distillation", "job": ""}, ttl_seconds=60)
    broker.workers.register("gone", {"role": "synthesis", "job": ""}, ttl_seconds=60)
    broker.workers.forget("gone")
    broker.redis.zincrby(keys.WORKERS, -20, "busy")
    busy, idle = sorted(broker.statistics.snapshot().workers, key=lambda worker: worker.name)
    assert (busy.name, busy.role, busy.job) == ("busy", "synthesis", "job-1")
    assert busy.heartbeat_age_seconds == pytest.approx(20, abs=2)
    assert (idle.name, idle.job) == ("idle", "")
    assert 0 <= idle.heartbeat_age_seconds < 2


def test_a_worker_that_was_killed_leaves_the_list_with_the_next_heartbeat_of_another(broker: Broker) -> None:
    broker.workers.register("killed", {"role": "synthesis", "job": ""}, ttl_seconds=60)
    broker.redis.zincrby(keys.WORKERS, -61, "killed")
    broker.redis.delete(keys.worker("killed"))
    assert broker.statistics.snapshot().workers == []
    broker.workers.register("alive", {"role": "synthesis", "job": ""}, ttl_seconds=60)
    assert broker.redis.zrange(keys.WORKERS, 0, -1) == ["alive"]


def test_states_are_counted_anew_on_a_server_that_an_older_version_has_worked_with(
    broker: Broker, job: JobRecord
) -> None:
    broker.jobs.cancel(job.id)
    broker.jobs.create(small_job())
    broker.redis.delete(keys.STATISTICS)
    assert states(broker) == {State.CANCELLED: 1, State.QUEUED: 1}
    assert broker.redis.hget(keys.STATISTICS, "jobs:cancelled") == "1"


def test_one_snapshot_is_one_round_trip_however_many_jobs_and_workers_there_are(broker: Broker) -> None:
    sent: list[str] = []
    broker.statistics.snapshot()  # loads the script
    pool = broker.redis.connection_pool
    connection = pool.get_connection()
    connection_class = type(connection)
    pool.release(connection)
    original = connection_class.send_packed_command
    for number in range(50):
        broker.jobs.create(small_job())
        broker.workers.register(str(number), {"role": "synthesis", "job": ""}, ttl_seconds=60)

    def spy(self: Any, command: Any, check_health: bool = True) -> Any:
        sent.append("packet")
        return original(self, command, check_health)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection_class, "send_packed_command", spy)
        snapshot = broker.statistics.snapshot()
    assert (len(snapshot.workers), snapshot.jobs[State.QUEUED], len(sent)) == (50, 50, 1)


def test_the_memory_of_the_server_is_told(broker: Broker) -> None:
    used, limit = broker.statistics.memory()
    assert used > 100_000
    assert limit == 0
