"""When a waiting worker lets another task have its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shared.broker import Broker
from shared.worker import yielding
from shared.worker.yielding import YieldRule
from tests.shared.broker.test_leases import claim
from tests.specs import small_job


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the rule sees, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(yielding, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_another_task_gets_the_worker_after_a_while(broker: Broker, clock: SimpleNamespace) -> None:
    broker.jobs.create(small_job())
    broker.jobs.create(small_job())
    turn: Any = SimpleNamespace(attempt=claim(broker), broker=broker)
    rule = YieldRule(turn, 5.0)

    assert [rule.is_over(), advance(clock, 4, rule), advance(clock, 2, rule)] == [False, False, True]


def test_who_goes_on_in_between_waits_anew(broker: Broker, clock: SimpleNamespace) -> None:
    broker.jobs.create(small_job())
    broker.jobs.create(small_job())
    turn: Any = SimpleNamespace(attempt=claim(broker), broker=broker)
    rule = YieldRule(turn, 5.0)
    rule.is_over()
    clock.now += 4

    rule.goes_on()

    assert [rule.is_over(), advance(clock, 4, rule), advance(clock, 2, rule)] == [False, False, True]


def test_nobody_yields_to_nobody(broker: Broker, clock: SimpleNamespace) -> None:
    broker.jobs.create(small_job())
    turn: Any = SimpleNamespace(attempt=claim(broker), broker=broker)
    rule = YieldRule(turn, 5.0)
    rule.is_over()

    assert not advance(clock, 100, rule)


def advance(clock: SimpleNamespace, seconds: float, rule: YieldRule) -> bool:
    clock.now += seconds
    return rule.is_over()
