"""Creating, listing and cancelling jobs."""

from typing import Any

import pytest

from shared.broker import Broker, JobFinished, QueueFull, job_list, keys
from shared.errors import UserError
from shared.jobs import Role, State
from tests.specs import small_job
from tests.waiting import wait_until


def test_a_new_job_is_queued_with_all_of_its_tasks(broker: Broker) -> None:
    record = broker.jobs.create(small_job(synthesis={"partitions": 3}, metadata={"owner": "me"}))

    assert record.state is State.QUEUED
    assert record.metadata == {"owner": "me"}
    assert record.stages.synthesis is not None
    assert [stage.progress.total for stage in record.stages.synthesis.partitions] == [22, 21, 21]
    assert record.stages.distillation is not None
    assert record.stages.distillation.progress.total == 20
    assert broker.jobs.queue_depths() == {Role.SYNTHESIS: 3, Role.DISTILLATION: 1}
    assert [event.type for event in broker.reports.events(record.id)] == ["job_created"]
    assert record.parsed_spec() == small_job(synthesis={"partitions": 3}, metadata={"owner": "me"})


def test_a_dataset_only_job_has_no_distillation_stage(broker: Broker) -> None:
    record = broker.jobs.create(small_job(distillation=None, student=None))

    assert record.stages.distillation is None
    assert broker.jobs.queue_depths()[Role.DISTILLATION] == 0


def test_an_unknown_job_is_a_key_error(broker: Broker) -> None:
    with pytest.raises(KeyError):
        broker.jobs.get("job-00000000000000000000")
    with pytest.raises(KeyError):
        broker.jobs.cancel("job-00000000000000000000")


def test_jobs_are_listed_newest_first_in_pages_without_gap_or_repeat(broker: Broker) -> None:
    made = [broker.jobs.create(small_job(name=f"number {n}")).id for n in range(7)]

    seen: list[str] = []
    after, more = None, True
    while more:
        page, more = broker.jobs.list(after=after, limit=3)
        seen += [record.id for record in page]
        after = seen[-1]

    # Ids sort by creation to the millisecond; jobs of the same millisecond may come in either order.
    assert seen == sorted(made, reverse=True)


def test_listing_filters_by_state_and_name(broker: Broker) -> None:
    kept = broker.jobs.create(small_job(name="Digits one"))
    broker.jobs.create(small_job(name="other"))
    gone = broker.jobs.create(small_job(name="digits two"))
    broker.jobs.cancel(gone.id)

    found, more = broker.jobs.list(name="digits", state=State.QUEUED)

    assert [record.id for record in found] == [kept.id]
    assert not more


def test_listing_by_state_and_owner_finds_few_jobs_among_many_without_a_look_at_the_others(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [broker.jobs.create(small_job(), owner="me").id for _ in range(3)]
    for _ in range(40):
        broker.jobs.create(small_job(), owner="you")
    broker.jobs.cancel(mine[0])
    read: list[str] = []

    def note(fields: object, **_: object) -> dict[str, str]:
        read.append("")
        return _pairs(fields)

    broker.redis.set_response_callback("HGETALL", note)

    assert {job.id for job in broker.jobs.list(owner="me")[0]} == set(mine)
    assert [job.id for job in broker.jobs.list(state=State.CANCELLED)[0]] == mine[:1]
    assert {job.id for job in broker.jobs.list(state=State.QUEUED, owner="me")[0]} == set(mine[1:])
    assert broker.jobs.list(state=State.RUNNING)[0] == []
    assert len(read) == 6


def _pairs(fields: object) -> dict[str, str]:
    if isinstance(fields, dict):
        return fields
    assert isinstance(fields, list)
    return dict(zip(fields[::2], fields[1::2], strict=True))


def test_a_search_by_name_ignores_case_in_any_script(broker: Broker) -> None:
    wanted = [broker.jobs.create(small_job(name="Ämter")).id]
    for number in range(5):
        broker.jobs.create(small_job(name=f"other {number}"))
    wanted.append(broker.jobs.create(small_job(name="ämterliste")).id)
    found, more = broker.jobs.list(name="ÄMTER")
    first, there_is_more = broker.jobs.list(name="ämter", limit=1)

    assert {job.id for job in found} == set(wanted)
    assert not more
    assert len(first) == 1
    assert there_is_more


def test_a_search_by_name_goes_on_where_the_server_let_others_in(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = broker.jobs.create(small_job(name="wanted"))
    other = small_job(name="other")
    for _ in range(job_list.LOOKS):
        broker.jobs.create(other)
    calls: list[object] = []
    page = job_list._page

    def counted(*args: Any, **more: Any) -> list[str]:
        calls.append(args)
        return page(*args, **more)

    monkeypatch.setattr(job_list, "_page", counted)

    assert [job.id for job in broker.jobs.list(name="want")[0]] == [wanted.id]
    assert len(calls) == 2


def test_the_lists_are_made_anew_on_a_server_that_older_versions_have_worked_with(broker: Broker) -> None:
    job = broker.jobs.create(small_job(), owner="me")
    broker.redis.delete(keys.in_state(State.QUEUED), keys.of_owner("me"))

    assert [found.id for found in broker.jobs.list(state=State.QUEUED)[0]] == [job.id]
    assert [found.id for found in broker.jobs.list(owner="me")[0]] == [job.id]


def test_a_deleted_job_is_in_no_list(broker: Broker) -> None:
    job = broker.jobs.create(small_job(), owner="me")
    broker.jobs.cancel(job.id)

    broker.retention.delete(job.id, lease_seconds=1)

    assert broker.jobs.list(owner="me") == broker.jobs.list(state=State.CANCELLED) == broker.jobs.list() == ([], False)
    assert not broker.redis.keys(f"{keys.JOBS}:in:*") + broker.redis.keys(f"{keys.JOBS}:of:*")


def test_a_full_queue_refuses_and_stores_nothing(broker: Broker) -> None:
    first = broker.jobs.create(small_job(), max_unfinished=1)
    with pytest.raises(QueueFull):
        broker.jobs.create(small_job(), max_unfinished=1)
    broker.jobs.cancel(first.id)

    broker.jobs.create(small_job(), max_unfinished=1)

    assert len(broker.jobs.list()[0]) == 2


def test_cancelling_a_queued_job_ends_it_at_once(broker: Broker) -> None:
    record = broker.jobs.create(small_job())

    cancelled = broker.jobs.cancel(record.id)

    assert cancelled.state is State.CANCELLED
    assert cancelled.finished_at is not None
    assert broker.jobs.queue_depths() == {Role.SYNTHESIS: 0, Role.DISTILLATION: 0}
    with pytest.raises(JobFinished):
        broker.jobs.cancel(record.id)


def test_a_failed_partition_fails_its_stage_and_cancels_what_waits(broker: Broker) -> None:
    record = broker.jobs.create(small_job(synthesis={"partitions": 2}))
    attempt = wait_until(lambda: broker.leases.claim(Role.SYNTHESIS, "a", block_seconds=0.01))
    broker.leases.fail(attempt, UserError("bad_checkpoint", "wrong shape"))

    failed = broker.jobs.get(record.id)

    assert failed.state is State.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.stage) == ("bad_checkpoint", Role.SYNTHESIS)
    assert failed.stages.synthesis is not None
    assert [stage.state for stage in failed.stages.synthesis.partitions] == [State.FAILED, State.CANCELLED]
    assert failed.stages.distillation is not None
    assert failed.stages.distillation.state is State.CANCELLED
    assert broker.leases.claim(Role.DISTILLATION, "b", block_seconds=0.01) is None
