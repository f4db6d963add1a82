"""When a waiting synthesis worker lets another task have its place."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.broker import Attempt, Broker
from shared.jobs import Role
from synth_service.synthesis import pacing
from synth_service.synthesis.pacing import YieldRule
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import claim
from tests.specs import small_job


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    broker = Broker(redis_url, lease_seconds=60.0, retries=1)
    yield broker
    broker.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the rule sees, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def rule_of(broker: Broker, attempt: Attempt) -> YieldRule:
    turn: Any = SimpleNamespace(attempt=attempt, broker=broker)
    return YieldRule(turn)


def test_an_older_task_is_let_pass_at_once(broker: Broker, clock: SimpleNamespace) -> None:
    broker.jobs.create(small_job())
    newer = broker.jobs.create(small_job())
    older_attempt, attempt = claim(broker), claim(broker)
    rule = rule_of(broker, attempt)
    assert not rule.is_over(broker.shards.backlog(newer.id))

    broker.leases.release(older_attempt, "worker stopping")
    clock.now += 2

    assert rule.is_over(broker.shards.backlog(newer.id))
    assert rule.is_older


def test_a_shard_that_an_older_job_owes_is_let_pass_after_a_while(broker: Broker, clock: SimpleNamespace) -> None:
    """Its task is new in the queue, so nothing tells it from a newer job's."""
    older, newer = broker.jobs.create(small_job()), broker.jobs.create(small_job())
    first, distiller = claim(broker), claim(broker, Role.DISTILLATION)
    broker.shards.announce(first, manifest_of(first, 0, images=64), {})
    assert broker.leases.finish(first) == "ok"
    attempt = claim(broker)
    assert attempt.job_id == newer.id
    rule = rule_of(broker, attempt)
    (shard,) = broker.shards.until(older.id)
    broker.shards.quarantine(distiller, shard, "missing", consumed=True)

    clock.now += 2
    assert not rule.is_over(broker.shards.backlog(newer.id))
    clock.now += pacing.YIELD_SECONDS
    assert rule.is_over(broker.shards.backlog(newer.id))
    assert not rule.is_older
    broker.leases.release(attempt, "yield", let_others_pass=True)
    following = broker.leases.claim(Role.SYNTHESIS, "worker", after=attempt.entry, block_seconds=0.01)
    assert following is not None
    assert following.job_id == older.id


def test_a_distiller_that_fell_silent_is_none(broker: Broker, clock: SimpleNamespace) -> None:
    job = broker.jobs.create(small_job())
    broker.jobs.create(small_job())
    attempt, distiller = claim(broker), claim(broker, Role.DISTILLATION)
    rule = rule_of(broker, attempt)
    for _ in range(10):
        clock.now += 60
        broker.leases.renew(distiller)
        assert not rule.is_over(broker.shards.backlog(job.id))

    clock.now += 60
    assert not rule.is_over(broker.shards.backlog(job.id))
    clock.now += 2 * 60 + pacing.YIELD_SECONDS

    assert rule.is_over(broker.shards.backlog(job.id))
