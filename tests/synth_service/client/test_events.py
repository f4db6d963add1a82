"""Events over connections that are cut: each arrives, and arrives once."""

import random

import anyio
import pytest

from shared.broker import Attempt, Broker
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import Role
from synth_service.client import AsyncClient, Client, ServerUnreachable, UnexpectedAnswer
from tests.conftest import free_port
from tests.synth_service.api.conftest import claim
from tests.synth_service.client.conftest import job
from tests.synth_service.client.cutting_proxy import cutting
from tests.synth_service.client.scripted_server import Answer, ScriptedServer

HEAD_BYTES = 600
"""About the length of an answer's head. Cuts before its end are cuts too, but bring no event."""


def eventful(client: Client, broker: Broker, count: int) -> tuple[str, Attempt]:
    """A running job to which much has happened."""
    job_id = client.jobs.create(job()).id
    attempt = claim(broker, Role.SYNTHESIS)
    for number in range(count):
        broker.reports.report(attempt, EventType.EVALUATED, {"number": number})
    return job_id, attempt


def test_a_stream_that_is_cut_twenty_times_brings_every_event_once(
    service: str, client: Client, broker: Broker
) -> None:
    job_id, attempt = eventful(client, broker, 100)
    broker.leases.fail(attempt, UserError("over", "it is over"))
    expected = broker.reports.events(job_id, limit=1000)
    pick = random.Random(0)
    cuts = [HEAD_BYTES + pick.randrange(900) for _ in range(20)]
    with cutting(service, cuts) as proxy, Client(proxy.url, sleep=lambda _: None) as cut_off:
        received = list(cut_off.jobs.events(job_id))
        assert proxy.cuts == 20
    assert received == expected
    assert received[-1].type == "job_failed"


def test_the_asynchronous_stream_does_the_same(service: str, client: Client, broker: Broker) -> None:
    job_id, attempt = eventful(client, broker, 30)
    broker.leases.fail(attempt, UserError("over", "it is over"))

    async def listen(url: str) -> list[str]:
        async with AsyncClient(url) as asynchronous:
            return [event.id async for event in asynchronous.jobs.events(job_id)]

    with cutting(service, [HEAD_BYTES + 700, 5, HEAD_BYTES + 350]) as proxy:
        received = anyio.run(listen, proxy.url)
        assert proxy.cuts == 3
    assert received == [event.id for event in broker.reports.events(job_id, limit=1000)]


def test_events_come_while_they_happen(client: Client, broker: Broker) -> None:
    job_id, attempt = eventful(client, broker, 1)
    seen = []
    for event in client.jobs.events(job_id):
        seen.append(event.type)
        if event.type == "evaluated" and seen.count("evaluated") < 3:
            broker.reports.report(attempt, EventType.EVALUATED, {})
        elif event.type == "evaluated":
            broker.jobs.cancel(job_id)
            broker.leases.release(attempt, "job stopped")
    assert seen.count("evaluated") == 3
    assert seen[-1] == "job_cancelled"


def test_a_listener_may_leave(client: Client, broker: Broker) -> None:
    job_id, _ = eventful(client, broker, 3)
    events = client.jobs.events(job_id)
    assert next(events).id == broker.reports.events(job_id, limit=1)[0].id
    events.close()  # type: ignore[attr-defined]
    assert client.jobs.get(job_id).id == job_id


def test_listening_after_the_last_event_ends(client: Client, broker: Broker) -> None:
    job_id, attempt = eventful(client, broker, 1)
    broker.leases.fail(attempt, UserError("over", "it is over"))
    *_, last = client.jobs.events(job_id)
    assert list(client.jobs.events(job_id, after=last.id)) == []


def test_the_events_until_now_are_a_list(client: Client, broker: Broker) -> None:
    job_id, _ = eventful(client, broker, 600)  # more than a page
    until_now = list(client.jobs.events(job_id, follow=False))
    assert until_now == broker.reports.events(job_id, limit=1000)
    assert list(client.jobs.events(job_id, follow=False, after=until_now[-2].id)) == until_now[-1:]


def test_a_server_without_event_streams_is_no_endless_loop() -> None:
    answers = [Answer(200, b"{}", {"Content-Type": "application/json"})]
    with ScriptedServer(answers).running() as server, Client(server.url) as client, pytest.raises(UnexpectedAnswer):
        list(client.jobs.events("job-0"))
    assert len(server.asked) == 1


def test_nobody_there_ends_the_listening_when_patience_does() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, sleep=lambda _: None) as client, pytest.raises(ServerUnreachable):
        list(client.jobs.events("job-0", patience_seconds=0.1))
