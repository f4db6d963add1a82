"""Webhooks, from the end of a job to a real server that receives them."""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from starlette.testclient import TestClient

from shared.broker import Broker, keys
from shared.errors import UserError
from shared.jobs import JobRecord, Role
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import Storage
from synth_service.api import webhooks
from synth_service.api.app import create_app
from tests.conftest import free_port
from tests.synth_service.api.conftest import claim, complete
from tests.synth_service.api.receivers import Receiver, receiving, status
from tests.synth_service.api.running import running
from tests.synth_service.api.test_main import outcome, start
from tests.waiting import wait_until

SECRET = "whsec_" + "c2lnbmVkIGJ5IHRoZSBBUEksIHJlYWxseQ=="

Serve = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(webhooks, "WAITS_SECONDS", (0.01,) * 7)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def serve(settings: Settings) -> Serve:
    """Serves the API, which may tell these receivers."""

    def allowing(*receivers: Receiver) -> TestClient:
        hosts = tuple(each.host for each in receivers)
        return TestClient(create_app(settings.model_copy(update={"webhook_hosts": hosts, "webhook_secret": SECRET})))

    return allowing


def cancelled(broker: Broker, written: dict[str, Any], url: str) -> JobRecord:
    """A job that has ended; nobody asked whether it may name the address."""
    return broker.jobs.cancel(broker.jobs.create(JobSpec.model_validate({**written, "webhook": url})).id)


def told(broker: Broker, job_id: str) -> dict[str, Any]:
    """The event that ends a delivery, once it has happened."""

    def find() -> dict[str, Any] | None:
        events = [each for each in broker.reports.events(job_id) if each.type.startswith("webhook_")]
        return {"type": events[-1].type, **events[-1].data} if events else None

    return wait_until(find)


def verified(receiver: Receiver, number: int = 0) -> Any:
    """What a receiver learns from a delivery, once it has made sure that it is one."""
    wait_until(lambda: len(receiver.received) > number)
    request = receiver.received[number]
    return Webhook(SECRET).verify(request.body, request.headers)


def test_a_job_that_succeeds_is_told_and_the_signature_holds(
    broker: Broker, storage: Storage, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    with serve(receiver) as client:
        job = client.post("/jobs", json={**written, "webhook": receiver.url, "metadata": {"run": "7"}}).json()
        complete(broker, storage, result={"images": 8, "quality": {"verdict": "good", "reason": "it is"}})
        webhook = verified(receiver)
        assert told(broker, job["id"]) == {
            "type": "webhook_delivered",
            "receiver": receiver.host,
            "status": 200,
            "attempts": 1,
        }
        record = client.get(f"/jobs/{job['id']}").json()
        metrics = client.get("/metrics").text
    assert 'dfkd_webhooks_total{outcome="delivered"} 1.0' in metrics
    assert webhook["type"] == "job.succeeded"
    assert webhook["timestamp"].endswith("Z")
    assert webhook["data"] == {
        "id": job["id"],
        "name": "digits",
        "metadata": {"run": "7"},
        "state": "succeeded",
        "created_at": record["created_at"],
        "finished_at": record["finished_at"],
        "verdict": "good",
        "result": {"images": 8, "quality": {"verdict": "good", "reason": "it is"}},
        "error": None,
    }
    (request,) = receiver.received
    assert request.path == "/hook?token=swordfish"
    assert request.headers["webhook-id"] == f"{job['id']}-0"
    assert request.headers["Content-Type"] == "application/json"
    forged = request.body.replace(b"succeeded", b"cancelled")
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(forged, request.headers)


def test_a_job_that_fails_is_told_with_its_error(
    broker: Broker, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    broker.jobs.create(JobSpec.model_validate({**written, "webhook": receiver.url}))
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError("checkpoint_mismatch", "other weights"))
    with serve(receiver):
        webhook = verified(receiver)
    assert webhook["type"] == "job.failed"
    assert webhook["data"]["error"] == {
        "code": "checkpoint_mismatch",
        "message": "other weights",
        "stage": "synthesis",
    }
    assert webhook["data"]["result"] is None


def test_each_end_of_a_retried_job_is_told_under_an_id_of_its_own(
    broker: Broker, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    with serve(receiver) as client:
        job = cancelled(broker, written, receiver.url)
        assert verified(receiver)["type"] == "job.cancelled"
        told(broker, job.id)
        client.post(f"/jobs/{job.id}/retry")
        client.post(f"/jobs/{job.id}/cancel")
        assert verified(receiver, 1)["type"] == "job.cancelled"
    assert [each.headers["webhook-id"] for each in receiver.received] == [f"{job.id}-0", f"{job.id}-1"]


def test_it_is_tried_until_it_is_answered_under_one_id(broker: Broker, written: dict[str, Any], serve: Serve) -> None:
    with receiving(status(500), status(503), status(204)) as receiver, serve(receiver):
        job = cancelled(broker, written, receiver.url)
        assert told(broker, job.id)["attempts"] == 3
    assert {(each.headers["webhook-id"], each.body) for each in receiver.received} == {
        (f"{job.id}-0", receiver.received[0].body)
    }
    assert [verified(receiver, number)["data"]["id"] for number in range(3)] == [job.id] * 3


def test_it_is_given_up_after_eight_attempts(broker: Broker, written: dict[str, Any], serve: Serve) -> None:
    with receiving(status(500)) as receiver, serve(receiver) as client:
        job = cancelled(broker, written, receiver.url)
        assert told(broker, job.id) == {
            "type": "webhook_failed",
            "receiver": receiver.host,
            "reason": "it answered 500",
            "attempts": 8,
        }
        assert 'dfkd_webhooks_total{outcome="failed"} 1.0' in client.get("/metrics").text
    assert len(receiver.received) == 8


def test_a_receiver_that_is_gone_is_asked_no_more(broker: Broker, written: dict[str, Any], serve: Serve) -> None:
    with receiving(status(410)) as receiver, serve(receiver):
        job = cancelled(broker, written, receiver.url)
        assert told(broker, job.id)["reason"] == "it answered 410"
    assert len(receiver.received) == 1


def test_a_redirect_is_not_followed(broker: Broker, written: dict[str, Any], serve: Serve) -> None:
    with receiving() as other, receiving(status(302, Location=other.url)) as receiver, serve(receiver, other):
        job = cancelled(broker, written, receiver.url)
        assert told(broker, job.id)["reason"] == "it answered 302; redirects are not followed"
        assert other.received == []


def test_a_host_that_is_no_longer_allowed_is_not_asked(
    broker: Broker, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    with receiving() as other, serve(other):
        job = cancelled(broker, written, receiver.url)
        assert "no longer allowed (DFKD_WEBHOOK_HOSTS)" in told(broker, job.id)["reason"]
    assert receiver.received == []


def test_an_endless_answer_is_not_read(broker: Broker, written: dict[str, Any], serve: Serve) -> None:
    cut_off = threading.Event()

    def endlessly(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 65536)
        except OSError:
            cut_off.set()

    with receiving(endlessly) as receiver, serve(receiver):
        job = cancelled(broker, written, receiver.url)
        assert told(broker, job.id)["type"] == "webhook_delivered"
        assert cut_off.wait(10)


def test_who_does_not_listen_or_speaks_no_http_is_told_apart_and_not_repeated(
    broker: Broker, written: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WAITS_SECONDS", ())
    nobody = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-swordfish\r\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # or the system would take back what was sent
                    pass

        thread = threading.Thread(target=speak)
        thread.start()
        update = {"webhook_hosts": (f"127.0.0.1:{nobody}", f"127.0.0.1:{port}"), "webhook_secret": SECRET}
        with TestClient(create_app(settings.model_copy(update=update))):
            absent = cancelled(broker, written, f"http://127.0.0.1:{nobody}/")
            odd = cancelled(broker, written, f"http://127.0.0.1:{port}/")
            assert told(broker, absent.id)["reason"].startswith("no connection: ")
            assert told(broker, odd.id)["reason"] == "no answer in HTTP (RemoteProtocolError)"
        thread.join()


def hang(receiver: Receiver) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(_: BaseHTTPRequestHandler) -> None:
        receiver.ended.wait(60)

    return answer


def test_a_receiver_that_hangs_holds_up_no_other(
    broker: Broker, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    with receiving() as hanging:
        hanging.answers = [hang(hanging)]
        for _ in range(webhooks.MOST_AT_ONCE + 10):
            cancelled(broker, written, hanging.url)
        with serve(receiver, hanging):
            wait_until(lambda: len(hanging.received) == webhooks.MOST_AT_ONCE_TO_ONE)
            job = cancelled(broker, written, receiver.url)
            assert told(broker, job.id)["type"] == "webhook_delivered"
            assert len(hanging.received) == webhooks.MOST_AT_ONCE_TO_ONE
            hanging.ended.set()


def test_a_receiver_that_does_not_answer_is_left_after_a_time(
    broker: Broker, written: dict[str, Any], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(webhooks, "WAITS_SECONDS", ())
    with receiving() as hanging:
        hanging.answers = [hang(hanging)]
        with serve(hanging):
            job = cancelled(broker, written, hanging.url)
            assert told(broker, job.id)["reason"] == "no answer within 0.2 s"


def test_a_restart_of_the_api_forgets_nothing_and_costs_no_lease(
    broker: Broker, written: dict[str, Any], serve: Serve
) -> None:
    with receiving() as receiver:
        receiver.answers = [hang(receiver), status(200)]
        with serve(receiver):
            job = cancelled(broker, written, receiver.url)
            wait_until(lambda: receiver.received)
        assert broker.webhooks.pending() == 1
        with serve(receiver):
            assert told(broker, job.id)["attempts"] == 1
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_several_api_processes_deliver_once(
    broker: Broker, written: dict[str, Any], receiver: Receiver, settings: Settings, tmp_path: Path
) -> None:
    variables = {
        "REDIS_URL": settings.redis_url or "",
        "DFKD_STORAGE": settings.storage,
        "DFKD_WEBHOOK_HOSTS": receiver.host,
        "DFKD_WEBHOOK_SECRET": SECRET,
    }
    with running(tmp_path / "a", **variables), running(tmp_path / "b", **variables):
        jobs = [cancelled(broker, written, receiver.url).id for _ in range(30)]
        for job in jobs:
            assert told(broker, job)["type"] == "webhook_delivered"
    assert Counter(each.headers["webhook-id"] for each in receiver.received) == {f"{job}-0": 1 for job in jobs}
    assert broker.webhooks.pending() == 0


def test_a_deleted_job_is_told_of_no_more(broker: Broker, written: dict[str, Any], serve: Serve) -> None:
    with receiving(status(500)) as receiver:
        job = cancelled(broker, written, receiver.url)
        with serve(receiver) as client:
            wait_until(lambda: receiver.received)
            assert client.delete(f"/jobs/{job.id}").status_code == 204
            assert broker.webhooks.pending() == 0
    assert not broker.jobs.exists(job.id)


def test_the_address_shows_in_no_log_and_no_event(
    broker: Broker, written: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with receiving(status(410), status(200)) as receiver:
        variables = {
            "REDIS_URL": settings.redis_url or "",
            "DFKD_STORAGE": settings.storage,
            "DFKD_WEBHOOK_HOSTS": receiver.host,
            "DFKD_WEBHOOK_SECRET": SECRET,
            "DFKD_LOG_LEVEL": "debug",
        }
        with running(log, **variables):
            for _ in range(2):
                job = cancelled(broker, written, receiver.url)
                told(broker, job.id)
                assert "swordfish" not in str(broker.reports.events(job.id))
    text = log.read_text()
    assert "webhook_not_delivered" in text
    assert "webhook_delivered" in text
    assert "swordfish" not in text
    assert SECRET.removeprefix("whsec_") not in text


def test_a_record_that_cannot_be_read_is_given_up_and_others_are_told(
    broker: Broker, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    broken = cancelled(broker, written, receiver.url)
    broker.redis.hset(keys.job(broken.id), "spec", "{}")
    job = cancelled(broker, written, receiver.url)
    with serve(receiver):
        assert told(broker, job.id)["type"] == "webhook_delivered"
        assert "fault of the service" in told(broker, broken.id)["reason"]


def test_the_api_does_not_start_with_hosts_and_no_secret(settings: Settings) -> None:
    code, output = outcome(
        start(REDIS_URL=settings.redis_url or "", DFKD_STORAGE=settings.storage, DFKD_WEBHOOK_HOSTS="example.org")
    )
    assert code == 2
    assert "DFKD_WEBHOOK_SECRET" in output
    assert "openssl rand -base64 32" in output


def test_without_hosts_nothing_is_sent_and_what_is_due_waits(
    broker: Broker, written: dict[str, Any], receiver: Receiver, serve: Serve
) -> None:
    job = cancelled(broker, written, receiver.url)
    with serve() as client:
        assert client.get("/readyz").status_code == 200
    assert broker.webhooks.pending() == 1
    with serve(receiver):
        assert told(broker, job.id)["type"] == "webhook_delivered"
