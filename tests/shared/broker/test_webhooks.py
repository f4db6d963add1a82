"""A delivery is due once a job with a webhook has ended, and is claimed by one process at a time."""

import pytest

from shared.broker import Attempt, Broker, Delivery
from shared.errors import UserError
from shared.jobs import JobRecord, Role
from tests.specs import small_job
from tests.waiting import wait_until

URL = "https://example.org/hook?token=swordfish"
LEASE_SECONDS = 60.0


def only_synthesis(broker: Broker, webhook: str | None = URL) -> JobRecord:
    return broker.jobs.create(small_job(distillation=None, student=None, webhook=webhook))


def claim_task(broker: Broker) -> Attempt:
    # The first claim makes the consumer group and finds nothing.
    found = broker.leases.claim(Role.SYNTHESIS, "a", block_seconds=0.01) or broker.leases.claim(Role.SYNTHESIS, "a")
    assert found is not None
    return found


def cancelled(broker: Broker) -> JobRecord:
    return broker.jobs.cancel(only_synthesis(broker).id)


def claim(broker: Broker, most: int = 10, lease_seconds: float = LEASE_SECONDS) -> list[Delivery]:
    return broker.webhooks.claim(most, lease_seconds=lease_seconds)


def events(broker: Broker, job_id: str) -> list[tuple[str, dict[str, object]]]:
    return [
        (event.type, dict(event.data)) for event in broker.reports.events(job_id) if event.type.startswith("webhook_")
    ]


def test_nothing_is_due_before_a_job_ends(broker: Broker) -> None:
    only_synthesis(broker)
    claim_task(broker)
    assert claim(broker) == []
    assert broker.webhooks.pending() == 0


def test_a_job_that_fails_is_due(broker: Broker) -> None:
    job = only_synthesis(broker)
    broker.leases.fail(claim_task(broker), UserError("poor_quality", "nothing to see"))
    assert [each.job_id for each in claim(broker)] == [job.id]


def test_a_job_that_is_cancelled_is_due_once_its_last_task_has_ended(broker: Broker) -> None:
    job = only_synthesis(broker)
    attempt = claim_task(broker)
    broker.jobs.cancel(job.id)
    assert claim(broker) == []
    broker.leases.release(attempt, "job stopped")
    assert [each.job_id for each in claim(broker)] == [job.id]


def test_a_job_without_a_webhook_is_never_due(broker: Broker) -> None:
    broker.jobs.cancel(only_synthesis(broker, webhook=None).id)
    assert broker.webhooks.pending() == 0


def test_a_claim_is_one_claimants_until_its_lease_is_over(broker: Broker) -> None:
    job = cancelled(broker)
    (first,) = claim(broker, lease_seconds=0.0)
    second = wait_until(lambda: claim(broker))[0]
    assert second.job_id == job.id
    assert second.claim != first.claim
    assert claim(broker) == []
    broker.webhooks.delivered(first, receiver="example.org:443", status=200)
    assert events(broker, job.id) == []
    broker.webhooks.delivered(second, receiver="example.org:443", status=204)
    assert events(broker, job.id) == [
        ("webhook_delivered", {"receiver": "example.org:443", "status": 204, "attempts": 1})
    ]
    assert broker.webhooks.pending() == 0


def test_those_that_are_due_for_longest_come_first_and_no_more_than_asked_for(broker: Broker) -> None:
    jobs = [cancelled(broker).id for _ in range(3)]
    assert [each.job_id for each in claim(broker, most=2)] == jobs[:2]
    assert [each.job_id for each in claim(broker, most=2)] == jobs[2:]


def test_a_failure_is_due_again_after_its_wait_and_ends_after_the_last(broker: Broker) -> None:
    job = cancelled(broker)
    waits = (0.01, 60.0)
    (delivery,) = claim(broker)
    assert broker.webhooks.failed(delivery, receiver="r:1", reason="it answered 500", waits_seconds=waits) == 0.01
    (delivery,) = wait_until(lambda: claim(broker))
    assert broker.webhooks.failed(delivery, receiver="r:1", reason="it answered 500", waits_seconds=waits) == 60.0
    assert claim(broker) == []
    assert events(broker, job.id) == []
    assert broker.webhooks.pending() == 1


def test_a_delivery_that_is_given_up_says_why(broker: Broker) -> None:
    job = cancelled(broker)
    (delivery,) = claim(broker)
    assert broker.webhooks.failed(delivery, receiver="r:1", reason="it answered 410", waits_seconds=()) is None
    assert broker.webhooks.pending() == 0
    assert events(broker, job.id) == [
        ("webhook_failed", {"receiver": "r:1", "reason": "it answered 410", "attempts": 1})
    ]


def test_what_is_said_twice_counts_once(broker: Broker) -> None:
    job = cancelled(broker)
    (delivery,) = claim(broker)
    for _ in range(2):
        broker.webhooks.failed(delivery, receiver="r:1", reason="it answered 500", waits_seconds=(0.0,))
    (delivery,) = wait_until(lambda: claim(broker))
    for _ in range(2):
        broker.webhooks.delivered(delivery, receiver="r:1", status=200)
    assert events(broker, job.id) == [("webhook_delivered", {"receiver": "r:1", "status": 200, "attempts": 2})]


def test_a_delivery_that_is_given_back_is_due_and_counts_as_no_attempt(broker: Broker) -> None:
    job = cancelled(broker)
    (delivery,) = claim(broker)
    broker.webhooks.postpone(delivery, 0.0)
    (delivery,) = wait_until(lambda: claim(broker))
    broker.webhooks.delivered(delivery, receiver="r:1", status=200)
    assert [data["attempts"] for _, data in events(broker, job.id)] == [1]


@pytest.mark.parametrize("is_claimed", [False, True])
def test_a_deleted_job_takes_its_delivery_along(broker: Broker, is_claimed: bool) -> None:
    job = cancelled(broker)
    claimed = claim(broker) if is_claimed else []
    broker.retention.delete(job.id, lease_seconds=5)
    assert broker.webhooks.pending() == 0
    for delivery in claimed:
        broker.webhooks.postpone(delivery, 0.0)
        broker.webhooks.failed(delivery, receiver="r:1", reason="it answered 500", waits_seconds=(0.0,))
        broker.webhooks.delivered(delivery, receiver="r:1", status=200)
    assert broker.webhooks.pending() == 0
    assert not broker.jobs.exists(job.id)
    assert broker.reports.events(job.id) == []


def test_a_retried_job_is_told_of_at_its_next_end(broker: Broker) -> None:
    job = cancelled(broker)
    (late,) = claim(broker)
    broker.webhooks.failed(late, receiver="r:1", reason="it answered 500", waits_seconds=(0.0,))
    (late,) = wait_until(lambda: claim(broker))
    broker.jobs.retry(job.id)
    assert broker.webhooks.pending() == 0
    broker.webhooks.delivered(late, receiver="r:1", status=200)
    assert events(broker, job.id) == []
    broker.jobs.cancel(job.id)
    (delivery,) = claim(broker)
    broker.webhooks.delivered(delivery, receiver="r:1", status=200)
    assert events(broker, job.id) == [("webhook_delivered", {"receiver": "r:1", "status": 200, "attempts": 1})]


def test_a_full_server_takes_outcomes(broker: Broker) -> None:
    jobs = [cancelled(broker).id for _ in range(2)]
    first, second = claim(broker)
    broker.redis.config_set("maxmemory", "1")
    try:
        broker.webhooks.delivered(first, receiver="r:1", status=200)
        broker.webhooks.failed(second, receiver="r:1", reason="it answered 410", waits_seconds=())
    finally:
        broker.redis.config_set("maxmemory", "0")
    assert [events(broker, job)[0][0] for job in jobs] == ["webhook_delivered", "webhook_failed"]
