"""Claims, heartbeats, takeovers: nobody who was declared dead can touch a job."""

from collections.abc import Iterator

import pytest

from shared.broker import Attempt, Broker, JobStopped, LeaseLost, StudentSnapshot, keys
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import JobError, JobRecord, Role, State
from tests.shared.broker.manifests import manifest_of
from tests.specs import small_job
from tests.waiting import wait_until

LEASE_SECONDS = 0.3


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    broker = Broker(redis_url, lease_seconds=LEASE_SECONDS, max_attempts=2, retries=1)
    yield broker
    broker.close()


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job())


def claim(broker: Broker, role: Role = Role.SYNTHESIS, worker: str = "worker") -> Attempt:
    """The next task, waiting for an expired lease if need be."""
    return wait_until(lambda: broker.leases.claim(role, worker, block_seconds=0.01))


def event_types(broker: Broker, job: JobRecord) -> list[str]:
    return [event.type for event in broker.reports.events(job.id)]


def test_a_claim_starts_an_attempt_and_the_job(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker, worker="a")

    record = broker.jobs.get(job.id)
    assert (attempt.job_id, attempt.number) == (job.id, 1)
    assert record.state is State.RUNNING
    assert record.stages.synthesis is not None
    assert (record.stages.synthesis.worker, record.stages.synthesis.attempt) == ("a", 1)
    assert broker.leases.claim(Role.SYNTHESIS, "b", block_seconds=0.01) is None


def test_a_renewed_lease_is_not_taken_over(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker)
    for done in range(30):
        broker.leases.renew(attempt, done=done, rate=2.0)
        assert broker.leases.claim(Role.SYNTHESIS, "b", block_seconds=LEASE_SECONDS / 10) is None

    stage = broker.jobs.get(job.id).stages.synthesis
    assert stage is not None
    assert (stage.progress.done, stage.progress.rate) == (29, 2.0)
    assert stage.progress.eta_seconds == pytest.approx((64 - 29) / 2, abs=0.1)


def test_a_zombie_can_do_nothing_after_takeover(broker: Broker, job: JobRecord) -> None:
    zombie = claim(broker, worker="a")
    successor = claim(broker, worker="b")
    snapshot = StudentSnapshot(version=1, name="x", sha256="0" * 64)

    assert successor.number == 2
    for write in (
        lambda: broker.leases.renew(zombie),
        lambda: broker.leases.release(zombie, "late"),
        lambda: broker.leases.retry(zombie, JobError(code="late", message="late")),
        lambda: broker.leases.fail(zombie, UserError("late", "late")),
        lambda: broker.leases.finish(zombie),
        lambda: broker.shards.announce(zombie, manifest_of(zombie, 0), {}),
        lambda: broker.checkpoints.save(zombie, {"name": "late"}, position=1),
        lambda: broker.shards.consumed(zombie, shards=9, images=9),
        lambda: broker.snapshots.publish(zombie, snapshot),
        lambda: broker.reports.report(zombie, EventType.EVALUATED),
    ):
        with pytest.raises(LeaseLost):
            write()

    record = broker.jobs.get(job.id)
    assert record.state is State.RUNNING
    assert broker.shards.manifests(job.id) == []
    assert broker.snapshots.newest(job.id) is None
    assert event_types(broker, job) == ["job_created", "attempt_started", "attempt_lost", "attempt_started"]
    broker.shards.announce(successor, manifest_of(successor, 0), {"name": "state"})
    assert [manifest.attempt for manifest in broker.shards.manifests(job.id)] == [2]


def test_a_released_task_is_claimed_at_once_and_before_newer_jobs(broker: Broker, job: JobRecord) -> None:
    newer = broker.jobs.create(small_job())
    attempt = claim(broker)
    broker.leases.release(attempt, "worker stopping")

    second = broker.leases.claim(Role.SYNTHESIS, "b", block_seconds=0.01)
    third = broker.leases.claim(Role.SYNTHESIS, "c", block_seconds=0.01)

    assert second is not None
    assert third is not None
    assert (second.job_id, second.number, third.job_id) == (job.id, 2, newer.id)
    with pytest.raises(LeaseLost):
        broker.leases.renew(attempt)


def test_workers_that_vanish_without_progress_fail_the_job(broker: Broker, job: JobRecord) -> None:
    claim(broker)
    claim(broker)

    wait_until(lambda: broker.leases.claim(Role.SYNTHESIS, "c", block_seconds=0.01) is None and failed(broker, job))

    error = broker.jobs.get(job.id).error
    assert error is not None
    assert error.code == "worker_lost"
    assert "2 workers in a row" in error.message


def failed(broker: Broker, job: JobRecord) -> bool:
    return broker.jobs.get(job.id).state is State.FAILED


def test_progress_forgives_earlier_failures(broker: Broker, job: JobRecord) -> None:
    for index in range(4):
        attempt = claim(broker)
        broker.shards.announce(attempt, manifest_of(attempt, index), {"name": f"state-{index}"})

    assert broker.jobs.get(job.id).state is State.RUNNING


def test_errors_are_retried_and_then_fail_the_job_with_the_last_one(broker: Broker, job: JobRecord) -> None:
    broker.leases.retry(claim(broker), JobError(code="internal_error", message="first"))
    record = broker.jobs.get(job.id)
    assert record.state is State.RUNNING
    assert record.stages.synthesis is not None
    assert record.stages.synthesis.error is not None

    broker.leases.retry(claim(broker), JobError(code="internal_error", message="second"))

    record = broker.jobs.get(job.id)
    assert record.state is State.FAILED
    assert record.error is not None
    assert record.error.message == "second"


def test_a_cancel_reaches_a_running_worker_and_ends_when_it_lets_go(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker)

    assert broker.jobs.cancel(job.id).state is State.CANCELLING
    with pytest.raises(JobStopped):
        broker.leases.renew(attempt)
    with pytest.raises(JobStopped):
        broker.leases.finish(attempt)
    broker.leases.release(attempt, "job stopped")

    record = broker.jobs.get(job.id)
    assert record.state is State.CANCELLED
    assert event_types(broker, job)[-2:] == ["cancel_requested", "job_cancelled"]
    assert broker.jobs.queue_depths() == {Role.SYNTHESIS: 0, Role.DISTILLATION: 0}


def test_a_cancel_of_a_job_whose_worker_died_ends_at_the_next_claim(broker: Broker, job: JobRecord) -> None:
    claim(broker)
    broker.jobs.cancel(job.id)

    wait_until(lambda: broker.leases.claim(Role.SYNTHESIS, "b", block_seconds=0.01) is None and ended(broker, job))

    assert broker.jobs.get(job.id).state is State.CANCELLED


def ended(broker: Broker, job: JobRecord) -> bool:
    return broker.jobs.get(job.id).state.is_final


def test_the_other_stage_of_a_failed_job_is_told_to_stop(broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker), claim(broker, Role.DISTILLATION)
    broker.leases.fail(synthesis, UserError("bad_checkpoint", "foreign"))

    with pytest.raises(JobStopped):
        broker.leases.renew(distillation)
    broker.leases.release(distillation, "job stopped")

    stages = broker.jobs.get(job.id).stages
    assert stages.distillation is not None
    assert stages.distillation.state is State.CANCELLED
    assert broker.jobs.get(job.id).state is State.FAILED


def test_only_the_last_task_completes_the_folder_and_ends_the_job(broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker), claim(broker, Role.DISTILLATION)
    assert broker.leases.finish(synthesis) == "more"
    broker.shards.announce(synthesis, manifest_of(synthesis, 0, images=64), {"name": "state"})

    assert broker.leases.finish(synthesis) == "ok"
    assert broker.jobs.get(job.id).state is State.RUNNING
    assert broker.leases.finish(distillation) == "last"
    assert broker.jobs.get(job.id).state is State.RUNNING
    assert broker.leases.finish(distillation, folder_completed=True, result={"images": 64}) == "ok"

    record = broker.jobs.get(job.id)
    assert record.state is State.SUCCEEDED
    assert record.result == {"images": 64}
    assert broker.leases.finish(distillation, folder_completed=True) == "ok"
    assert broker.jobs.queue_depths() == {Role.SYNTHESIS: 0, Role.DISTILLATION: 0}


@pytest.fixture
def patient(redis_url: str) -> Iterator[Broker]:
    """A broker with whom no lease expires during a test."""
    broker = Broker(redis_url, lease_seconds=60.0, retries=1)
    yield broker
    broker.close()


def test_an_expired_claim_is_found_behind_any_number_of_live_ones(patient: Broker) -> None:
    broker = patient
    jobs = [broker.jobs.create(small_job()) for _ in range(25)]
    attempts = [claim(broker) for _ in jobs]
    broker.leases.release(attempts[-1], "worker stopping")

    again = broker.leases.claim(Role.SYNTHESIS, "b", block_seconds=0.01)

    assert again is not None
    assert again.job_id == jobs[-1].id


def test_looking_for_an_expired_claim_is_one_round_trip_however_many_are_alive(patient: Broker) -> None:
    for _ in range(25):
        patient.jobs.create(small_job())
        assert claim(patient)
    before = commands(patient)

    assert patient.leases.claim(Role.SYNTHESIS, "idle", block_seconds=0.001) is None

    # The search with what its script asks, the look for a new entry, and the questions for the count itself.
    assert commands(patient) - before <= 10


def commands(broker: Broker) -> int:
    """What the server has done for the connection of this broker, inside of scripts as well."""
    return int(broker.redis.client_info()["tot-cmds"])


def test_a_live_worker_keeps_its_task_whoever_is_handed_the_entry(patient: Broker) -> None:
    broker = patient
    broker.jobs.create(small_job())
    attempt = claim(broker)
    idle = int(2000 * broker.leases.lease_seconds)
    broker.redis.xclaim("dfkd:queue:synthesis", "workers", "a", 0, [attempt.entry], idle=idle, justid=True)

    assert broker.leases.claim(Role.SYNTHESIS, "b", block_seconds=0.01) is None
    broker.leases.renew(attempt)


def went_away(broker: Broker, *attempts: Attempt, seconds: float = 200.0) -> None:
    """As if the server had been away for so long: nobody was heard of."""
    broker.redis.hincrbyfloat(keys.HEARD, "at", -seconds)
    for attempt in attempts:
        fall_silent(broker, attempt, seconds)


def fall_silent(broker: Broker, attempt: Attempt, seconds: float) -> None:
    """As if the worker had last been heard of so much earlier."""
    field, queue = f"{attempt.task}:heartbeat_at", keys.queue(attempt.task.role)
    broker.redis.hincrbyfloat(keys.job(attempt.job_id), field, -seconds)
    idle = int(seconds * 1000)
    broker.redis.xclaim(queue, keys.GROUP, attempt.worker, 0, [attempt.entry], idle=idle, justid=True)


def test_three_outages_of_the_server_cost_nothing(patient: Broker) -> None:
    """All workers were silent, for the server was away; nobody had vanished."""
    broker = patient
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    for _ in range(3):
        went_away(broker, attempt)
        assert broker.leases.claim(Role.SYNTHESIS, "another", block_seconds=0.01) is None
        broker.leases.renew(attempt)

    assert event_types(broker, job) == ["job_created", "attempt_started"]


def test_a_takeover_soon_after_an_outage_counts_no_failure(patient: Broker) -> None:
    """Of whoever does not come back as well."""
    broker = patient
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    for number in range(2, 6):
        went_away(broker, attempt)
        assert broker.leases.claim(Role.SYNTHESIS, "another", block_seconds=0.01) is None
        broker.redis.hincrbyfloat(keys.HEARD, "returned_at", -6.0)
        attempt = claim(broker)
        assert attempt.number == number

    assert broker.jobs.get(job.id).state is State.RUNNING
    assert event_types(broker, job).count("attempt_lost") == 4


def test_a_job_that_kills_the_only_worker_again_and_again_ends(patient: Broker) -> None:
    """Its own silence looks like that of the server; that is no reason to begin for ever."""
    broker = patient
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    attempts = 1
    while broker.jobs.get(job.id).state is State.RUNNING and attempts < 50:
        went_away(broker, attempt)
        assert broker.leases.claim(Role.SYNTHESIS, "again", block_seconds=0.01) is None
        broker.redis.hincrbyfloat(keys.HEARD, "returned_at", -6.0)
        following = broker.leases.claim(Role.SYNTHESIS, "again", block_seconds=0.01)
        if following is not None:
            attempt, attempts = following, attempts + 1

    assert broker.jobs.get(job.id).state is State.FAILED
    assert attempts == 3 * 3 + 3


def test_workers_that_vanish_long_after_an_outage_count(patient: Broker) -> None:
    broker = patient
    job = broker.jobs.create(small_job())
    attempt = claim(broker)
    went_away(broker, attempt)
    assert broker.leases.claim(Role.SYNTHESIS, "another", block_seconds=0.01) is None
    broker.redis.hincrbyfloat(keys.HEARD, "returned_at", -1000.0)
    for _ in range(2):
        attempt = claim(broker)
        fall_silent(broker, attempt, 200.0)
    assert broker.leases.claim(Role.SYNTHESIS, "another", block_seconds=0.01) is None

    record = broker.jobs.get(job.id)
    assert record.error is not None
    assert (record.state, record.error.code) == (State.FAILED, "worker_lost")


def test_only_a_checkpoint_beyond_the_best_so_far_is_progress(broker: Broker, job: JobRecord) -> None:
    """An attempt that comes as far as its predecessor, and fails there again, ends the job in the end."""
    for _ in range(3):
        attempt = claim(broker)
        broker.checkpoints.save(attempt, {"name": "x"}, position=5)
        broker.leases.retry(attempt, JobError(code="internal_error", message="poison"))
        if broker.jobs.get(job.id).state is State.FAILED:
            break

    assert broker.jobs.get(job.id).state is State.FAILED


def test_a_checkpoint_beyond_the_best_so_far_forgives_failures(broker: Broker, job: JobRecord) -> None:
    for position in (5, 6, 7):
        attempt = claim(broker)
        broker.checkpoints.save(attempt, {"name": "x"}, position=position)
        broker.leases.retry(attempt, JobError(code="internal_error", message="bad luck"))

    assert broker.jobs.get(job.id).state is State.RUNNING
