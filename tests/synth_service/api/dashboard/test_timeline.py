"""The timeline is checked on events as the broker writes them, and on lists of events that take hours to come about."""

import itertools
from typing import Any

import pytest
from pydantic import JsonValue

from shared.broker import Broker
from shared.errors import UserError
from shared.jobs import DistillationStage, Event, JobRecord, Role, Stage, Stages, State, SynthesisStage
from shared.storage import Storage
from synth_service.api.dashboard.timeline import MOST_LANES, Span, Timeline, build_timeline
from tests.synth_service.api.conftest import announce, claim, complete

SYNTHESIS = "synthesis:0"


def record(
    synthesis: Stage | None = None, state: State = State.RUNNING, finished_at: float | None = None, partitions: int = 1
) -> JobRecord:
    """A job that was created at 1000, with synthesis only."""
    stage = synthesis or Stage(state=State.RUNNING, started_at=1000.0)
    return JobRecord(
        id="job-00000000000000000001",
        state=state,
        created_at=1000.0,
        finished_at=finished_at,
        stages=Stages(synthesis=SynthesisStage(partitions=[stage] * partitions)),
        spec={},
    )


def happened(type: str, at: float, task: str | None = SYNTHESIS, **data: JsonValue) -> Event:
    return Event(id=f"{at:.0f}-0", type=type, at=at, task=task, data=data)


def started(at: float, attempt: int = 1) -> Event:
    return happened("attempt_started", at, worker=f"worker-{attempt}", attempt=attempt)


def spans(
    events: list[Event], now: float = 1100.0, job: JobRecord | None = None
) -> list[tuple[str, float, float, str]]:
    timeline = build_timeline(job or record(), events, now)
    return [(span.kind, span.start, span.end, span.outcome) for span in timeline.lanes[0].spans]


def test_a_task_waits_works_and_goes_on() -> None:
    assert spans([started(1010)]) == [("waiting", 1000, 1010, ""), ("attempt", 1010, 1100, "")]


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (happened("attempt_released", 1050, reason="worker stopping"), "released"),
        (happened("attempt_failed", 1050, code="internal_error", message="no memory"), "failed"),
        (happened("attempt_lost", 1050, worker="worker-1", attempt=1), "lost"),
    ],
)
def test_an_attempt_that_ends_is_followed_by_waiting_and_by_the_next(ending: Event, outcome: str) -> None:
    assert spans([started(1000), ending, started(1060, 2)]) == [
        ("attempt", 1000, 1050, outcome),
        ("waiting", 1050, 1060, ""),
        ("attempt", 1060, 1100, ""),
    ]


def test_the_words_of_an_ending_tell_the_reason() -> None:
    events = [started(1000), happened("attempt_released", 1050, worker="worker-1", reason="worker stopping")]
    attempt = build_timeline(record(), events, 1100).lanes[0].attempts[0]
    assert attempt.detail == "on worker-1, released: worker stopping"


def test_pauses_lie_within_an_attempt_and_end_with_it() -> None:
    events = [
        started(1000),
        happened("synthesis_paused", 1020, backlog=4),
        happened("synthesis_resumed", 1030, backlog=3),
        happened("synthesis_paused", 1060, backlog=4),
        happened("attempt_released", 1080, reason="worker stopping"),
    ]
    lane = build_timeline(record(), events, 1100).lanes[0]
    assert [(span.start, span.end) for span in lane.spans if span.kind == "paused"] == [(1020, 1030), (1060, 1080)]
    assert lane.paused_within(lane.attempts[0]) == 30


def test_a_pause_tells_who_is_waited_for() -> None:
    events = [started(1000)]
    for at in (1010, 1010.1, 1050):
        events += [happened("synthesis_paused", at, backlog=4), happened("synthesis_resumed", at + 0.05, backlog=3)]
    for spec, awaited in (({}, "the distiller"), ({"external": True}, "your program")):
        lane = build_timeline(record().model_copy(update={"spec": spec}), events, 1100).lanes[0]
        titles = [span.title for span in lane.spans if span.kind == "paused"]
        assert titles == [f"Paused 2 times: {awaited} is behind", f"Paused: {awaited} is behind"]


def test_pauses_that_nobody_could_tell_apart_are_drawn_as_one() -> None:
    events = [started(1000)]
    for number in range(1000):
        events.append(happened("synthesis_paused", 1001 + number, backlog=4))
        events.append(happened("synthesis_resumed", 1001.5 + number, backlog=3))
    lane = build_timeline(record(), events, now=3000).lanes[0]
    assert [span.count for span in lane.spans if span.kind == "paused"] == [1000]
    assert lane.paused_within(lane.attempts[0]) == pytest.approx(500)


def test_a_finished_task_waits_for_nothing_until_a_damaged_shard_brings_it_back() -> None:
    succeeded = Stage(state=State.SUCCEEDED, started_at=1000, finished_at=1040)
    done = [started(1000), happened("task_succeeded", 1040)]
    assert spans(done, job=record(succeeded)) == [("attempt", 1000, 1040, "succeeded")]
    again = [*done, happened("shard_damaged", 1070, name="x.tar"), started(1080, 2)]
    assert spans(again)[1:] == [("waiting", 1070, 1080, ""), ("attempt", 1080, 1100, "")]


def test_a_retried_job_shows_no_waiting_while_it_lay_still() -> None:
    events = [
        started(1000),
        happened("job_failed", 1020, None, code="bad_checkpoint", message="no such file", stage="synthesis"),
        happened("job_retried", 1080, None),
        started(1085, 2),
    ]
    assert spans(events) == [
        ("attempt", 1000, 1020, "failed"),
        ("waiting", 1080, 1085, ""),
        ("attempt", 1085, 1100, ""),
    ]


def test_attempts_whose_events_are_gone_are_drawn_from_the_stage() -> None:
    job = record(Stage(state=State.RUNNING, started_at=1000, worker="worker-7", attempt=7))
    assert spans([], job=job) == [("attempt", 1000, 1100, "")]
    later = [happened("attempt_lost", 1050, worker="worker-6", attempt=6), started(1050, 7)]
    assert spans(later, job=job) == [("attempt", 1000, 1050, "unknown"), ("attempt", 1050, 1100, "")]


def test_many_partitions_are_drawn_in_part_and_the_distillation_always() -> None:
    job = record(partitions=40)
    job.stages.distillation = DistillationStage()
    timeline = build_timeline(job, [], 1100)
    assert [lane.title for lane in timeline.lanes[:2]] == ["Synthesis 0", "Synthesis 1"]
    assert len(timeline.lanes) == MOST_LANES + 1
    assert timeline.lanes[-1].task.role is Role.DISTILLATION
    assert timeline.lanes_left_out == 40 - MOST_LANES


def test_places_are_percentages_and_a_short_span_is_seen_all_the_same() -> None:
    timeline = Timeline(1000, 2000, [])
    assert [timeline.place(at) for at in (900, 1000, 1500, 2000, 2100)] == [0, 0, 50, 100, 100]
    assert timeline.width(Span("attempt", 1500, 1500, "")) > 0


@pytest.mark.parametrize("seconds", [1, 7, 59, 61, 3000, 90_000, 10_000_000])
def test_ticks_are_few_and_round(seconds: float) -> None:
    ticks = Timeline(0, seconds, []).ticks
    assert 1 <= len(ticks) <= 6
    assert ticks[0].seconds == 0
    assert len({after.seconds - before.seconds for before, after in itertools.pairwise(ticks)}) <= 1


def lanes_of(broker: Broker, job: JobRecord) -> dict[str, list[Any]]:
    record = broker.jobs.get(job.id)
    timeline = build_timeline(record, broker.reports.events(job.id), record.created_at + 3600)
    return {lane.task.role: [(span.kind, span.outcome) for span in lane.spans] for lane in timeline.lanes}


def test_events_of_a_real_job_are_understood(broker: Broker, storage: Storage, job: JobRecord) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    announce(broker, storage, attempt, 0)
    broker.leases.release(attempt, "worker stopping")
    lanes = lanes_of(broker, job)
    assert lanes["synthesis"] == [("waiting", ""), ("attempt", "released"), ("waiting", "")]
    assert lanes["distillation"] == [("waiting", "")]


def test_the_lanes_of_a_succeeded_job_end_in_success(broker: Broker, storage: Storage, job: JobRecord) -> None:
    complete(broker, storage)
    lanes = lanes_of(broker, job)
    assert lanes == {
        "synthesis": [("waiting", ""), ("attempt", "succeeded")],
        "distillation": [("waiting", ""), ("attempt", "succeeded")],
    }


def test_the_lane_that_failed_the_job_says_so_and_the_other_was_only_stopped(broker: Broker, job: JobRecord) -> None:
    synthesis, _distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    broker.leases.fail(synthesis, UserError("bad_checkpoint", "the file is none"))
    lanes = lanes_of(broker, job)
    assert lanes["synthesis"][-1] == ("attempt", "failed")
    assert lanes["distillation"][-1] == ("attempt", "cancelled")
