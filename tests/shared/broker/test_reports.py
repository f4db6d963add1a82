"""Events and measured values as workers report them; see test_shards.py for shards and students."""

import math
import random

import pytest

from shared.broker import Attempt, Broker, StudentSnapshot
from shared.broker.reports import BLOCK_ROWS
from shared.events import EventType
from shared.jobs import Role
from tests.shared.broker.test_leases import claim
from tests.specs import small_job


def distilling(broker: Broker) -> Attempt:
    broker.jobs.create(small_job(synthesis={"partitions": 2}))
    return claim(broker, Role.DISTILLATION)


def test_a_peak_of_one_row_is_in_the_overview(broker: Broker) -> None:
    attempt = distilling(broker)
    generator = random.Random(0)
    for step in range(3 * BLOCK_ROWS + 10):
        loss = 1e9 if step == 100 else -1e9 if step == 150 else generator.random()
        broker.reports.report(attempt, step=step, metrics={"loss": loss, "learning_rate": 0.1})

    rows, total = broker.reports.metrics_overview(attempt.job_id)

    whole = broker.reports.metric_rows(attempt.job_id)
    assert total == len(whole) == 3 * BLOCK_ROWS + 10
    assert len(rows) <= 3 * 6 + 10
    assert [row for row in whole if row in rows] == rows  # rows as they are, in their order
    assert {100, 150, 0, BLOCK_ROWS - 1, BLOCK_ROWS, whole[-1].step} <= {row.step for row in rows}
    for start in range(0, 3 * BLOCK_ROWS, BLOCK_ROWS):
        losses = [row.values["loss"] for row in whole[start : start + BLOCK_ROWS]]
        kept = [row.values["loss"] for row in rows if start <= row.step < start + BLOCK_ROWS]
        assert (min(filter(None, kept)), max(filter(None, kept))) == (
            min(filter(None, losses)),
            max(filter(None, losses)),
        )


def test_an_overview_after_a_row_has_nothing_before_it(broker: Broker) -> None:
    attempt = distilling(broker)
    for step in range(2 * BLOCK_ROWS + 5):
        broker.reports.report(attempt, step=step, metrics={"loss": 1.0})
    whole = broker.reports.metric_rows(attempt.job_id)
    for place in (10, BLOCK_ROWS - 1, 2 * BLOCK_ROWS + 1):
        rows, _ = broker.reports.metrics_overview(attempt.job_id, after=whole[place].id)
        assert rows[0].step > place
        assert rows[-1] == whole[-1]
        assert broker.reports.metric_rows(attempt.job_id, after=whole[place].id) == whole[place + 1 :]


def test_tasks_have_blocks_of_their_own(broker: Broker) -> None:
    distiller = distilling(broker)
    workers = [claim(broker), claim(broker)]
    for step in range(BLOCK_ROWS):
        for attempt in (distiller, *workers):
            broker.reports.report(attempt, step=step, metrics={"loss": float(attempt.task.partition)})
    rows, _ = broker.reports.metrics_overview(distiller.job_id)
    assert sorted((row.task, row.step) for row in rows) == sorted(
        (str(attempt.task), step) for attempt in (distiller, *workers) for step in (0, BLOCK_ROWS - 1)
    )


def test_what_is_no_number_is_none_and_hides_nothing(broker: Broker) -> None:
    attempt = distilling(broker)
    for step in range(BLOCK_ROWS):
        loss = math.nan if step % 2 else math.inf if step == 10 else float(step)
        broker.reports.report(attempt, step=step, metrics={"loss": loss})
    rows, _ = broker.reports.metrics_overview(attempt.job_id)
    assert {row.step: row.values["loss"] for row in rows} == {0: 0.0, 10: None, BLOCK_ROWS - 1: None}
    assert broker.reports.metrics(attempt.job_id)[1]["values"] == {"loss": None}


def test_a_report_that_is_sent_twice_is_one_row(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first time was lost, and the client sent it again, as it is."""
    broker.jobs.create(small_job())
    attempt = claim(broker)
    for report_id in ("a" * 16, "b" * 16, "a" * 16, "b" * 16):
        monkeypatch.setattr("shared.broker.reports.secrets.token_hex", lambda _, each=report_id: each)
        broker.reports.report(attempt, EventType.EVALUATED, step=1, metrics={"loss": 1.0})

    assert len(broker.reports.metric_rows(attempt.job_id)) == 2
    assert [event.type for event in broker.reports.events(attempt.job_id)].count("evaluated") == 2


def test_a_snapshot_that_is_published_twice_is_one_event(broker: Broker) -> None:
    broker.jobs.create(small_job())
    distiller = claim(broker, Role.DISTILLATION)
    for _ in range(2):
        broker.snapshots.publish(distiller, StudentSnapshot(version=3, name="x", sha256="y"))

    types = [event.type for event in broker.reports.events(distiller.job_id)]
    assert types.count("student_published") == 1
