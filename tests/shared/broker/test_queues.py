"""Which tasks a worker may take: none that cannot progress, and in the end every one that can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.broker import Attempt, Broker
from shared.jobs import JobRecord, Role, State, tasks_of
from shared.specs import JobSpec
from tests.shared.broker.manifests import manifest_of
from tests.specs import job_fields, small_job

IMAGES = 16


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    broker = Broker(redis_url, lease_seconds=3600.0, retries=1)
    yield broker
    broker.close()


def distilled(*, max_backlog: int = 2, shards: int = 4) -> JobSpec:
    return small_job(synthesis={"num_images": shards * IMAGES, "batches_per_shard": 1, "max_backlog": max_backlog})


def images_only(shards: int = 2) -> JobSpec:
    return small_job(synthesis={"num_images": shards * IMAGES, "batches_per_shard": 1}, student=None, distillation=None)


def claim(broker: Broker, role: Role = Role.SYNTHESIS, worker: str = "worker") -> Attempt | None:
    for _ in range(2):  # the first may only make the queue's group
        attempt = broker.leases.claim(role, worker, block_seconds=0.001)
        if attempt is not None:
            return attempt
    return None


def hold(broker: Broker, role: Role = Role.SYNTHESIS) -> Attempt:
    attempt = claim(broker, role)
    assert attempt is not None
    return attempt


def announce(broker: Broker, attempt: Attempt, shards: int = 1) -> None:
    for _ in range(shards):
        position = broker.shards.position(attempt.job_id, attempt.task)
        first = position.owed[0][0] if position.owed else position.next_image
        manifest = manifest_of(attempt, position.next_index, images=IMAGES, first_image=first)
        broker.shards.announce(attempt, manifest, {"name": manifest.name})


def test_synthesis_that_is_ahead_of_no_distiller_is_not_claimable(broker: Broker) -> None:
    broker.jobs.create(distilled(max_backlog=2))
    attempt = hold(broker)
    announce(broker, attempt, shards=2)
    broker.leases.release(attempt, "no distiller", is_parked=True)

    assert claim(broker) is None

    distiller = hold(broker, Role.DISTILLATION)
    assert claim(broker) is not None
    broker.shards.consumed(distiller, shards=1, images=IMAGES)


def test_synthesis_is_claimable_once_a_shard_was_consumed(broker: Broker) -> None:
    broker.jobs.create(distilled(max_backlog=2))
    attempt, distiller = hold(broker), hold(broker, Role.DISTILLATION)
    announce(broker, attempt, shards=2)
    broker.leases.release(attempt, "no distiller", is_parked=True)
    broker.shards.consumed(distiller, shards=1, images=IMAGES)
    broker.leases.release(distiller, "worker stopping")

    assert claim(broker) is not None


def test_synthesis_that_waits_for_another_program_is_claimable_once_that_has_used_up_a_shard(broker: Broker) -> None:
    fields = {"num_images": 4 * IMAGES, "batches_per_shard": 1, "max_backlog": 2}
    job = broker.jobs.create(small_job(synthesis=fields, student=None, distillation="external"))
    attempt = hold(broker)
    announce(broker, attempt, shards=2)
    broker.leases.release(attempt, "the program that trains is behind", is_parked=True)
    assert claim(broker) is None

    broker.shards.used_up(job.id, broker.shards.read(job.id, "0")[0].position)

    assert claim(broker) is not None


def test_distillation_that_has_taken_every_shard_is_not_claimable_until_one_is_announced(broker: Broker) -> None:
    broker.jobs.create(distilled())
    attempt, distiller = hold(broker), hold(broker, Role.DISTILLATION)
    announce(broker, attempt)
    broker.shards.consumed(distiller, shards=1, images=IMAGES)
    broker.leases.release(distiller, "no images", is_parked=True)
    assert claim(broker, Role.DISTILLATION) is None

    announce(broker, attempt)

    assert claim(broker, Role.DISTILLATION) is not None


def test_a_task_that_was_given_back_by_a_stopping_worker_is_claimable_at_once(broker: Broker) -> None:
    broker.jobs.create(distilled(max_backlog=1))
    attempt = hold(broker)
    announce(broker, attempt)
    broker.leases.release(attempt, "worker stopping")

    assert claim(broker) is not None


def test_a_parked_task_of_a_cancelled_job_ends(broker: Broker) -> None:
    job = broker.jobs.create(distilled(max_backlog=1))
    attempt = hold(broker)
    announce(broker, attempt)
    broker.leases.release(attempt, "no distiller", is_parked=True)

    assert broker.jobs.cancel(job.id).state is State.CANCELLED
    assert claim(broker) is None


def test_a_shard_that_is_to_be_made_again_comes_before_all_other_tasks(broker: Broker) -> None:
    spec = distilled(shards=2)
    older = broker.jobs.create(spec)
    attempt, distiller = hold(broker), hold(broker, Role.DISTILLATION)
    announce(broker, attempt, shards=2)
    assert broker.leases.finish(attempt) == "ok"
    others = [broker.jobs.create(images_only()) for _ in range(3)]
    given_back = hold(broker)
    assert given_back.job_id == others[0].id
    broker.leases.release(given_back, "worker stopping")

    shard = next(broker.shards.until(older.id))
    broker.shards.quarantine(distiller, shard, "missing", consumed=False)

    assert [hold(broker).job_id for _ in range(4)] == [older.id, *(other.id for other in others)]
    assert claim(broker) is None


def test_a_worker_lets_only_those_pass_that_would_progress(broker: Broker) -> None:
    first, second = broker.jobs.create(distilled(max_backlog=1)), broker.jobs.create(distilled(max_backlog=1))
    attempts = [hold(broker), hold(broker)]
    for attempt in attempts:
        announce(broker, attempt)
    broker.leases.release(attempts[0], "no distiller", is_parked=True)
    assert not broker.leases.has_waiting(attempts[1])

    broker.jobs.create(images_only())

    assert broker.leases.has_waiting(attempts[1])
    assert {first.id, second.id} == {attempt.job_id for attempt in attempts}


def test_a_distiller_lets_no_task_pass_that_has_no_images_either(broker: Broker) -> None:
    broker.jobs.create(distilled())
    fresh = broker.jobs.create(distilled())
    distiller = hold(broker, Role.DISTILLATION)
    assert not broker.leases.has_waiting(distiller)

    hold(broker)
    announce(broker, hold(broker))

    assert broker.leases.has_waiting(distiller)
    assert hold(broker, Role.DISTILLATION).job_id == fresh.id


# -- every task that can progress does -------------------------------------------------------------------


@dataclass
class Worker:
    """What a worker process does, a step at a time; patience is counted in steps."""

    broker: Broker
    role: Role
    name: str
    attempt: Attempt | None = None
    waited: int = 0
    quarantines: int = 0
    taken: dict[str, int] = field(default_factory=dict)

    def step(self) -> bool:
        """Whether something was done but waiting."""
        if self.attempt is None:
            self.waited = 0
            self.attempt = claim(self.broker, self.role, self.name)
            return self.attempt is not None
        does = self._synthesise if self.role is Role.SYNTHESIS else self._distil
        if does(self.attempt):
            self.waited = 0
            return True
        self.waited += 1
        if self.waited > 2 and self.broker.leases.has_waiting(self.attempt):
            self.broker.leases.release(self.attempt, "yield", is_parked=True)
            self.attempt = None
            return True
        return False

    def _finish(self, attempt: Attempt) -> bool:
        answer = self.broker.leases.finish(attempt)
        if answer == "last":
            answer = self.broker.leases.finish(attempt, folder_completed=True)
        if answer == "ok":
            self.attempt = None
        return answer == "ok"

    def _synthesise(self, attempt: Attempt) -> bool:
        job = self.broker.jobs.get(attempt.job_id)
        spec = job.parsed_spec()
        assert spec.synthesis is not None
        position = self.broker.shards.position(job.id, attempt.task)
        if position.images == spec.synthesis.images_of_partition(attempt.task.partition):
            return self._finish(attempt)
        is_lockstep = spec.distillation is not None and spec.distillation.pacing == "lockstep"
        if self.broker.shards.backlog(job.id).shards >= (1 if is_lockstep else spec.synthesis.max_backlog):
            # As the real one: with a distiller at work it waits, however long.
            self.waited -= self.broker.shards.backlog(job.id).has_distiller
            return False
        announce(self.broker, attempt)
        return True

    def _distil(self, attempt: Attempt) -> bool:
        job_id = attempt.job_id
        shards, consumed = list(self.broker.shards.until(job_id)), self.broker.jobs.shards_consumed(job_id)
        if len(shards) > consumed:
            if self.quarantines:
                self.quarantines -= 1
                self.broker.shards.quarantine(attempt, shards[consumed], "missing", consumed=False)
            else:
                self.broker.shards.consumed(attempt, shards=consumed + 1, images=IMAGES * (consumed + 1))
            return True
        return self.broker.jobs.synthesis_is_complete(job_id) and self._finish(attempt)


@dataclass
class Program:
    """One that trains in a distiller's place and uses up a shard at each step."""

    broker: Broker
    job_id: str
    role: Role = Role.DISTILLATION
    waited: int = 0

    def step(self) -> bool:
        shards = list(self.broker.shards.until(self.job_id))
        used = self.broker.jobs.shards_consumed(self.job_id)
        if used == len(shards):
            return False
        return self.broker.shards.used_up(self.job_id, shards[used].position).shards == used + 1


LOCKSTEP = {"pacing": "lockstep", "steps_per_batch": 1, "batch_size": 16, "warmup_batches": 0}


def shape(name: str) -> JobSpec:
    if name == "images":
        return images_only()
    if name == "external":
        fields = job_fields(synthesis={"num_images": 3 * IMAGES, "batches_per_shard": 1, "max_backlog": 1})
        return JobSpec.model_validate({**fields, "student": None, "distillation": "external"})
    if name == "lockstep":
        fields = job_fields(synthesis={"num_images": 3 * IMAGES, "batches_per_shard": 1})
        return JobSpec.model_validate({**fields, "distillation": LOCKSTEP})
    return small_job(synthesis={"num_images": 4 * IMAGES, "batches_per_shard": 1, "max_backlog": 1, "partitions": 2})


@given(
    shapes=st.lists(
        st.sampled_from(["images", "external", "lockstep", "partitions", "partitions"]), min_size=9, max_size=10
    ),
    synthesis_workers=st.integers(1, 2),
    distillers=st.integers(1, 2),
    quarantines=st.integers(0, 2),
    late=st.booleans(),
    order=st.randoms(use_true_random=False),
)
@settings(
    max_examples=6,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    print_blob=False,
)
def test_every_task_that_can_progress_does(
    broker: Broker,
    shapes: list[str],
    synthesis_workers: int,
    distillers: int,
    quarantines: int,
    late: bool,
    order: object,
) -> None:
    """With more than twice as many tasks as workers. A job ends after as many steps as there is work, times a few."""
    broker.redis.flushall()
    jobs: list[JobRecord] = [broker.jobs.create(shape(name)) for name in shapes]
    workers: list[Worker | Program] = [
        Worker(broker, Role.SYNTHESIS, f"s{number}") for number in range(synthesis_workers)
    ]
    workers += [
        Worker(broker, Role.DISTILLATION, f"d{number}", quarantines=quarantines) for number in range(distillers)
    ]
    assert sum(len(tasks_of(shape(name))) for name in shapes) > 2 * len(workers)
    workers += [Program(broker, job.id) for job, name in zip(jobs, shapes, strict=True) if name == "external"]
    bound = 60 * len(jobs)
    for step in range(bound):
        at_work = [worker for worker in workers if worker.role is Role.SYNTHESIS or not late or step > 30]
        order.shuffle(at_work)  # type: ignore[attr-defined]
        progressed = [worker.step() for worker in at_work]
        if any(progressed) or (late and step < 40) or any(0 < worker.waited <= 3 for worker in workers):
            continue
        assert all(broker.jobs.get(job.id).state is State.SUCCEEDED for job in jobs), "everybody waits"
        return
    states = {job.name: broker.jobs.get(job.id).state for job in jobs}
    raise AssertionError(f"not ended after {bound} steps of every worker: {states}")
