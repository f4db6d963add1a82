"""Shards, students, events and metrics."""

import dataclasses
from typing import Any

import pytest

from shared.broker import AnnouncedShard, Backlog, Broker, NotExternal, StudentSnapshot, UsedUp, keys
from shared.events import EventType
from shared.jobs import JobRecord, Measurement, Role, State, Task
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job

SYNTHESIS = Task(Role.SYNTHESIS)


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job())


def test_announcing_a_shard_moves_the_position_and_stores_the_checkpoint(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {"name": "state-0"})
    broker.shards.announce(attempt, manifest_of(attempt, 1), {"name": "state-1"})

    position = broker.shards.position(job.id, SYNTHESIS)

    assert (position.next_index, position.next_image, position.images) == (2, 32, 32)
    assert position.checkpoint == {"name": "state-1"}
    assert broker.shards.backlog(job.id).shards == 2


def test_announcing_an_index_twice_does_nothing(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker)
    for _ in range(2):
        broker.shards.announce(attempt, manifest_of(attempt, 0), {"name": "state"})

    assert len(broker.shards.manifests(job.id)) == 1
    assert broker.shards.position(job.id, SYNTHESIS).images == 16


def test_an_index_cannot_be_skipped(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker)
    with pytest.raises(ValueError, match="shard 1 announced where 0 was due"):
        broker.shards.announce(attempt, manifest_of(attempt, 1), {})


def test_shards_are_read_in_order_from_a_position(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker)
    for index in range(3):
        broker.shards.announce(attempt, manifest_of(attempt, index), {})

    first = broker.shards.read(job.id, "0", count=2)
    rest = broker.shards.read(job.id, first[-1].position)
    nothing = broker.shards.read(job.id, rest[-1].position, block_seconds=0.01)

    assert [shard.manifest.index for shard in first + rest] == [0, 1, 2]
    assert nothing == []
    assert list(broker.shards.until(job.id, first[-1].position)) == first


def damage(broker: Broker, job: JobRecord, number: int) -> AnnouncedShard:
    return broker.shards.read(job.id, "0", count=10)[number]


def test_all_shards_of_a_long_job_are_read_a_page_at_a_time(
    broker: Broker, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.broker.shards.PAGE", 3)
    attempt = claim(broker)
    for index in range(7):
        broker.shards.announce(attempt, manifest_of(attempt, index), {})

    everything = list(broker.shards.until(job.id))

    assert [shard.manifest.index for shard in everything] == list(range(7))
    assert list(broker.shards.until(job.id, everything[2].position)) == everything[:3]


def test_a_shard_is_known_to_count_without_a_look_at_all(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.broker.shards.PAGE", 2)
    broker.jobs.create(small_job(synthesis={"partitions": 2}))
    attempts = [claim(broker), claim(broker)]
    for index in range(6):
        for attempt in attempts:
            broker.shards.announce(attempt, manifest_of(attempt, index), {})
    stranger = manifest_of(dataclasses.replace(attempts[0], number=2), 5)
    asked: list[object] = []
    xrevrange = broker.redis.xrevrange

    def counted(*args: Any, **more: Any) -> Any:
        asked.append(args)
        return xrevrange(*args, **more)

    monkeypatch.setattr(broker.redis, "xrevrange", counted)

    assert broker.shards.is_announced(manifest_of(attempts[1], 5))
    assert broker.shards.is_announced(manifest_of(attempts[0], 0))
    asked.clear()
    assert not broker.shards.is_announced(stranger)
    assert not broker.shards.is_announced(manifest_of(attempts[0], 6))
    assert len(asked) <= 2


def test_a_shard_that_is_quarantined_is_owed_once_and_made_good_by_another(broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker), claim(broker, Role.DISTILLATION)
    for index in range(2):
        broker.shards.announce(synthesis, manifest_of(synthesis, index), {})
    bad = damage(broker, job, 0)

    assert broker.shards.quarantine(distillation, bad, "wrong_sha256") == 1
    assert broker.shards.quarantine(distillation, bad, "wrong_sha256") == 1

    position = broker.shards.position(job.id, SYNTHESIS)
    assert (position.images, position.owed) == (16, ((0, 16),))
    broker.shards.announce(synthesis, manifest_of(synthesis, 2, first_image=0), {})
    position = broker.shards.position(job.id, SYNTHESIS)
    assert (position.images, position.owed, position.next_image) == (32, (), 32)
    assert [manifest.index for manifest in broker.shards.manifests(job.id)] == [1, 2]


def test_damage_found_after_synthesis_ended_puts_its_task_back_in_the_queue(broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker), claim(broker, Role.DISTILLATION)
    broker.shards.announce(synthesis, manifest_of(synthesis, 0, images=64), {"name": "state"})
    assert broker.leases.finish(synthesis) == "ok"
    assert broker.jobs.synthesis_is_complete(job.id)

    broker.shards.quarantine(distillation, damage(broker, job, 0), "missing")

    assert not broker.jobs.synthesis_is_complete(job.id)
    again = claim(broker)
    assert (again.task, again.number) == (SYNTHESIS, 2)
    broker.shards.announce(again, manifest_of(again, 1, images=64, first_image=0), {"name": "state"})
    assert broker.leases.finish(again) == "ok"
    assert broker.leases.finish(distillation) == "last"


def test_consumption_lowers_the_backlog_and_a_finished_distiller_ends_it(broker: Broker, job: JobRecord) -> None:
    synthesis = claim(broker)
    broker.shards.announce(synthesis, manifest_of(synthesis, 0), {})
    assert not broker.shards.backlog(job.id).has_distiller
    distillation = claim(broker, Role.DISTILLATION)
    assert broker.shards.backlog(job.id).has_distiller

    broker.shards.consumed(distillation, shards=1, images=16)

    assert broker.shards.backlog(job.id).shards == 0
    stage = broker.jobs.get(job.id).stages.distillation
    assert stage is not None
    assert (stage.shards_consumed, stage.images_consumed) == (1, 16)


def test_a_dataset_only_job_has_no_backlog(broker: Broker) -> None:
    job = broker.jobs.create(small_job(distillation=None, student=None))
    attempt = claim(broker)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {})

    assert broker.shards.backlog(job.id).shards == 0


def test_the_newest_student_replaces_the_one_before(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    assert broker.snapshots.newest(job.id) is None
    for version in (200, 400):
        snapshot = StudentSnapshot(version=version, name=f"student-{version}", sha256="0" * 64)
        broker.snapshots.publish(attempt, snapshot)

    assert broker.snapshots.newest(job.id) == snapshot
    record = broker.jobs.get(job.id)
    assert record.stages.distillation is not None
    assert record.stages.distillation.student_version == 400


def test_events_are_read_after_an_id_without_gap_or_repeat(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    for number in range(5):
        broker.reports.report(attempt, EventType.EVALUATED, {"number": number})

    everything = broker.reports.events(job.id)
    pages = broker.reports.events(job.id, limit=3)
    pages += broker.reports.events(job.id, after=pages[-1].id)

    assert pages == everything
    assert [event.data["number"] for event in everything if event.type == "evaluated"] == [0, 1, 2, 3, 4]
    assert sorted(event.at for event in everything) == [event.at for event in everything]


def test_a_measurement_and_metrics_come_with_one_report(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    measurement = Measurement(step=7, student_top1=0.5, teacher_top1=0.9, agreement=0.6)
    broker.reports.report(attempt, EventType.EVALUATED, measurement=measurement, step=7, metrics={"loss": 1.5})

    assert broker.jobs.get(job.id).measurement == measurement
    (row,) = broker.reports.metrics(job.id)
    assert (row["task"], row["step"], row["values"]) == ("distillation:0", 7, {"loss": 1.5})


def test_workers_are_listed_until_they_are_forgotten(broker: Broker) -> None:
    broker.workers.register("one", {"role": "synthesis", "pid": 1}, ttl_seconds=60)
    broker.workers.register("two", {"role": "distillation"}, ttl_seconds=60)
    broker.workers.forget("two")

    assert broker.workers.all() == [{"name": "one", "role": "synthesis", "pid": "1"}]


def test_a_failover_to_an_older_clock_hides_no_shard(broker: Broker, job: JobRecord) -> None:
    """What a stream has last gives the next id where the clock does not, also when that entry is gone by then."""
    attempt, distiller = claim(broker), claim(broker, Role.DISTILLATION)
    future = "9999999999999-0"
    manifest = manifest_of(attempt, 0).model_dump_json()
    broker.redis.xadd(keys.shards(job.id), {"manifest": manifest}, id=future)
    (shard,) = broker.shards.read(job.id, "0", block_seconds=0)
    broker.shards.quarantine(distiller, shard, "missing")

    broker.shards.announce(attempt, manifest_of(attempt, 0), {})

    assert [each.manifest.index for each in broker.shards.read(job.id, future, block_seconds=0)] == [0]


@pytest.fixture
def external(broker: Broker) -> JobRecord:
    return broker.jobs.create(small_job(distillation="external", student=None))


def positions(broker: Broker, job: JobRecord) -> list[str]:
    return [shard.position for shard in broker.shards.until(job.id)]


def test_what_another_program_has_used_up_lowers_the_backlog(broker: Broker, external: JobRecord) -> None:
    attempt = claim(broker)
    for index in range(3):
        broker.shards.announce(attempt, manifest_of(attempt, index), {})
    assert broker.shards.backlog(external.id) == Backlog(3, has_distiller=False)
    before = broker.jobs.get(external.id).stages.synthesis
    assert before is not None
    assert (before.shards_consumed, before.consumed_until, before.shards_behind) == (0, "0", 3)

    second = positions(broker, external)[1]
    assert broker.shards.used_up(external.id, second) == UsedUp(second, shards=2, announced=3)

    assert broker.shards.backlog(external.id).shards == 1
    after = broker.jobs.get(external.id).stages.synthesis
    assert after is not None
    assert (after.shards_consumed, after.consumed_until, after.shards_behind) == (2, second, 1)


def test_an_older_or_repeated_report_does_nothing(broker: Broker, external: JobRecord) -> None:
    attempt = claim(broker)
    for index in range(3):
        broker.shards.announce(attempt, manifest_of(attempt, index), {})
    first, second, _ = positions(broker, external)
    known = broker.shards.used_up(external.id, second)
    for until in (second, first, "0", "1"):
        assert broker.shards.used_up(external.id, until) == known


def test_a_report_behind_the_newest_shard_stands_for_that_one(broker: Broker, external: JobRecord) -> None:
    future = "9999999999999999999"
    assert broker.shards.used_up(external.id, future) == UsedUp("0", shards=0, announced=0)
    attempt = claim(broker)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {})
    newest = positions(broker, external)[-1]
    assert broker.shards.used_up(external.id, future) == UsedUp(newest, shards=1, announced=1)

    broker.shards.announce(attempt, manifest_of(attempt, 1), {})

    assert broker.shards.backlog(external.id).shards == 1


def test_a_report_after_a_long_silence_counts_every_shard(broker: Broker, external: JobRecord) -> None:
    attempt = claim(broker)
    for index in range(501):
        broker.shards.announce(attempt, manifest_of(attempt, index), {})
    newest = positions(broker, external)[-1]
    assert broker.shards.used_up(external.id, newest) == UsedUp(newest, shards=501, announced=501)


@pytest.mark.parametrize(("number", "behind"), [(0, 1), (1, 0)])
def test_a_damaged_shard_counts_as_used_up_only_if_it_was(
    broker: Broker, external: JobRecord, number: int, behind: int
) -> None:
    attempt = claim(broker)
    for index in range(2):
        broker.shards.announce(attempt, manifest_of(attempt, index), {})
    broker.shards.used_up(external.id, positions(broker, external)[0])

    broker.shards.quarantine(attempt, damage(broker, external, number), "missing")

    assert broker.shards.backlog(external.id).shards == behind


def test_only_for_a_program_that_trains_is_there_anything_to_report(broker: Broker, job: JobRecord) -> None:
    with pytest.raises(NotExternal):
        broker.shards.used_up(job.id, "1-1")
    with pytest.raises(KeyError):
        broker.shards.used_up("job-" + "0" * 20, "1-1")


def test_the_last_shard_ends_the_job_however_far_the_program_is(broker: Broker, external: JobRecord) -> None:
    attempt = claim(broker)
    broker.shards.announce(attempt, manifest_of(attempt, 0, images=64), {})
    assert broker.leases.finish(attempt) == "last"
    assert broker.leases.finish(attempt, folder_completed=True) == "ok"
    assert broker.jobs.get(external.id).state is State.SUCCEEDED
    assert broker.shards.used_up(external.id, positions(broker, external)[0]).shards == 1
