"""What is tried again, how often, and what is not."""

import time
from email.utils import formatdate
from typing import Any

import pytest

from synth_service.client import ApiError, Client, Retry, ServerUnreachable
from tests.synth_service.client.conftest import job
from tests.synth_service.client.scripted_server import Answer, ScriptedServer

RECORD = b'{"id": "job-1", "state": "queued", "created_at": 1, "stages": {}, "spec": {}}'
CANCELLED = RECORD.replace(b"queued", b"cancelled")
FINISHED = b'{"code": "job_finished", "detail": "has finished"}'
CUT = Answer(0)


def tried(answers: list[Answer], call: Any, **options: Any) -> tuple[Any, ScriptedServer, list[float]]:
    """What a call gives over these answers, or the error; the server; the pauses."""
    pauses: list[float] = []
    with ScriptedServer(answers).running() as server, Client(server.url, sleep=pauses.append, **options) as client:
        try:
            return call(client), server, pauses
        except (ApiError, ServerUnreachable) as error:
            return error, server, pauses


def test_a_creation_is_tried_again_under_the_same_key() -> None:
    created, server, pauses = tried(
        [Answer(503), CUT, Answer(502), Answer(202, RECORD)], lambda client: client.jobs.create(job())
    )
    assert created.id == "job-1"
    keys = {asked.headers["idempotency-key"] for asked in server.asked}
    assert len(server.asked) == 4
    assert len(keys) == 1
    assert keys != {""}
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


def test_tries_come_to_an_end() -> None:
    error, server, _ = tried([Answer(503)] * 3, lambda client: client.jobs.get("job-1"), retries=2)
    assert isinstance(error, ServerUnreachable)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_a_refusal_is_final(status: int) -> None:
    error, server, _ = tried([Answer(status, b"[]")], lambda client: client.jobs.get("job-1"))
    assert isinstance(error, ApiError)
    assert error.status == status
    assert len(server.asked) == 1


def test_a_busy_service_says_how_long_to_wait() -> None:
    told: list[Retry] = []
    _, _, pauses = tried(
        [Answer(429, headers={"Retry-After": "7"}), Answer(202, RECORD)],
        lambda client: client.jobs.create(job()),
        on_retry=told.append,
    )
    assert pauses == [7.0]
    assert [(each.delay_seconds, str(each.failure)) for each in told] == [(7.0, "Too Many Requests")]


def test_a_date_to_wait_for_is_understood() -> None:
    date = formatdate(time.time() + 20, usegmt=True)
    _, _, pauses = tried(
        [Answer(503, headers={"Retry-After": date}), Answer(200, RECORD)], lambda client: client.jobs.get("job-1")
    )
    assert 15 < pauses[0] <= 20


def test_a_service_that_wants_an_hour_is_not_waited_for() -> None:
    answers = [Answer(429, b'{"code": "queue_full"}', {"Retry-After": "3600"})]
    error, server, pauses = tried(answers, lambda client: client.jobs.create(job()))
    assert error.code == "queue_full"
    assert pauses == []
    assert len(server.asked) == 1


def test_a_cancel_whose_answer_was_lost_has_cancelled() -> None:
    answers = [CUT, Answer(409, FINISHED), Answer(200, CANCELLED)]
    cancelled, _, _ = tried(answers, lambda client: client.jobs.cancel("job-1"))
    assert cancelled.state == "cancelled"


def test_a_cancel_that_comes_too_late_is_refused() -> None:
    error, server, _ = tried([Answer(409, FINISHED)], lambda client: client.jobs.cancel("job-1"))
    assert error.code == "job_finished"
    assert len(server.asked) == 1


def test_a_deletion_whose_answer_was_lost_has_deleted() -> None:
    gone, _, _ = tried([CUT, Answer(404)], lambda client: client.jobs.delete("job-1"))
    assert gone is None


def test_an_unknown_job_cannot_be_deleted() -> None:
    error, _, _ = tried([Answer(404)], lambda client: client.jobs.delete("job-1"))
    assert error.status == 404


def test_an_upload_whose_answer_was_lost_is_not_sent_twice(tmp_path: Any) -> None:
    (tmp_path / "weights").write_bytes(b"x" * 10)
    error, server, _ = tried([CUT], lambda client: client.models.upload(tmp_path / "weights"))
    assert isinstance(error, ServerUnreachable)
    assert len(server.asked) == 1


def test_the_key_is_sent_and_never_shown() -> None:
    _, server, _ = tried([Answer(200, RECORD)], lambda client: client.jobs.get("job-1"), api_key="dfkd_secret")
    assert server.asked[0].headers["authorization"] == "Bearer dfkd_secret"
    error, _, _ = tried([Answer(503)], lambda client: client.jobs.get("job-1"), api_key="dfkd_secret", retries=0)
    assert "dfkd_secret" not in repr(error)


def test_a_redirect_takes_the_key_nowhere() -> None:
    with ScriptedServer([]).running() as elsewhere:
        answers = [Answer(307, headers={"Location": elsewhere.url})]
        error, _, _ = tried(answers, lambda client: client.jobs.get("job-1"), api_key="dfkd_secret")
    assert isinstance(error, ApiError)
    assert elsewhere.asked == []
