from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Attempt, Broker
from shared.jobs import JobRecord, Role
from synth_service.api.routes import metrics
from synth_service.wire import MetricList
from tests.synth_service.api.conftest import claim


@pytest.fixture
def attempt(broker: Broker, job: JobRecord) -> Attempt:
    return claim(broker, Role.DISTILLATION)


def report(broker: Broker, attempt: Attempt, steps: range) -> None:
    for step in steps:
        broker.reports.report(attempt, step=step, metrics={"loss": 100.0 if step == 77 else 1 / (step + 1)})


def listed(client: TestClient, attempt: Attempt, **query: Any) -> list[dict[str, Any]]:
    response = client.get(f"/jobs/{attempt.job_id}/metrics", params=query)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = MetricList.model_validate(response.json()).model_dump()["data"]
    assert data == response.json()["data"]
    return data


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_values_are_listed_oldest_first_in_pages(client: TestClient, broker: Broker, attempt: Attempt) -> None:
    report(broker, attempt, range(5))
    whole = listed(client, attempt)
    assert (steps(whole), whole[1]["values"], whole[1]["task"]) == ([0, 1, 2, 3, 4], {"loss": 0.5}, "distillation:0")
    page = client.get(f"/jobs/{attempt.job_id}/metrics?limit=2").json()
    assert page == {"data": whole[:2], "has_more": True}
    rest = client.get(f"/jobs/{attempt.job_id}/metrics", params={"after": whole[1]["id"], "limit": 3}).json()
    assert rest == {"data": whole[2:], "has_more": False}


def test_only_the_steps_and_the_task_that_were_asked_for(client: TestClient, broker: Broker, attempt: Attempt) -> None:
    report(broker, attempt, range(4))
    broker.reports.report(claim(broker, Role.SYNTHESIS), step=9, metrics={"bn": 1.0})
    assert steps(listed(client, attempt, since_step=2)) == [2, 3, 9]
    assert steps(listed(client, attempt, since_step=2, points=10)) == [2, 3, 9]
    assert steps(listed(client, attempt, task="synthesis:0")) == [9]
    assert steps(listed(client, attempt, task="distillation:0", since_step=3, points=10)) == [3]
    assert listed(client, attempt, task="synthesis:1") == []


@pytest.mark.parametrize("whole_rows", [0, 100, 10_000])
def test_a_chart_of_many_rows_has_few_with_every_peak_and_the_newest(
    client: TestClient, broker: Broker, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, whole_rows: int
) -> None:
    """However the rows are read: those of the overview, or all of them."""
    monkeypatch.setattr(metrics, "READ_WHOLE_ROWS", whole_rows)
    report(broker, attempt, range(300))
    shown = listed(client, attempt, points=20)
    assert len(shown) <= 20
    assert steps(shown)[0] == 0
    assert steps(shown)[-1] == 299
    assert {"step": 77, "values": {"loss": 100.0}} in [{"step": row["step"], "values": row["values"]} for row in shown]


@pytest.mark.parametrize("since", [1, 63, 64, 65, 200, 290])
def test_zooming_in_shows_every_row_where_these_are_few(
    client: TestClient, broker: Broker, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    monkeypatch.setattr(metrics, "READ_WHOLE_ROWS", 299)
    report(broker, attempt, range(300))
    assert steps(listed(client, attempt, since_step=since, points=1000)) == list(range(since, 300))


def test_following_a_job_shows_every_row_once(client: TestClient, broker: Broker, attempt: Attempt) -> None:
    seen: list[int] = []
    last: dict[str, str] = {}
    for start in range(0, 90, 30):
        report(broker, attempt, range(start, start + 30))
        rows = listed(client, attempt, points=50, **last)
        seen += steps(rows)
        last = {"after": rows[-1]["id"]}
    assert seen == list(range(90))
    assert listed(client, attempt, points=50, **last) == []


def test_a_loss_that_is_no_number_is_null(client: TestClient, broker: Broker, attempt: Attempt) -> None:
    broker.reports.report(attempt, step=1, metrics={"loss": float("nan"), "rate": 0.1})
    assert listed(client, attempt)[0]["values"] == {"loss": None, "rate": 0.1}
    assert listed(client, attempt, points=10)[0]["values"] == {"rate": 0.1}
