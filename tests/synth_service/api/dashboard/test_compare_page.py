import json
import re
from html import unescape
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import Storage
from synth_service.api.app import create_app
from synth_service.api.dashboard.compare_page import ABSENT, comparison_charts, results_of, spec_differences
from tests.synth_service.api.conftest import complete
from tests.synth_service.api.keys import bearer, with_keys


@pytest.fixture
def other(broker: Broker, written: dict[str, Any]) -> JobRecord:
    """The job of ``job`` with another student, more steps and an evaluation."""
    changed = {
        **written,
        "name": "other <digits>",
        "student": {"arch": "resnet14"},
        "distillation": {"steps": 20, "warmup_batches": 0},
        "evaluation": {"shards": "held-out.tar"},
    }
    return broker.jobs.create(JobSpec.model_validate(changed))


def compare(client: TestClient, *ids: str) -> str:
    answer = client.get("/ui/compare", params={"job": list(ids)}, headers={"Accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return answer.text


def test_without_jobs_there_is_a_choice_of_them(client: TestClient, job: JobRecord, other: JobRecord) -> None:
    html = compare(client)
    assert html.count("<select") == 3
    assert html.count(f'value="{job.id}"') == html.count(f'value="{other.id}"') == 3
    assert "Choose two or three jobs" in html
    assert "other &lt;digits&gt;" in html


def test_one_job_is_chosen_and_waits_for_another(client: TestClient, job: JobRecord, other: JobRecord) -> None:
    html = compare(client, job.id, "", "")
    assert re.findall(r'value="([^"]*)"\s+selected', html) == [job.id]
    assert "Results" not in html


def test_two_jobs_are_compared(client: TestClient, job: JobRecord, other: JobRecord) -> None:
    html = compare(client, job.id, other.id, "")
    assert f'href="/ui/jobs/{job.id}"' in html
    assert f'href="/ui/jobs/{other.id}"' in html
    assert "student.arch" in html
    assert "None of these jobs has results yet" in html
    charts = re.search(r'data-charts="([^"]*)"', html)
    assert charts
    ids = [chart["id"] for chart in json.loads(unescape(charts[1]))]
    assert ids == re.findall(r'<figure class="chart" id="chart-([\w-]+)"', html)


@pytest.mark.parametrize("missing", [f"job-{'0' * 20}", "nonsense", "job-:shards"])
def test_a_job_that_there_is_not_is_named(client: TestClient, job: JobRecord, missing: str) -> None:
    assert f"There is no job <code>{missing}</code>" in compare(client, job.id, missing)


def test_more_than_three_are_too_many(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    jobs = [broker.jobs.create(JobSpec.model_validate(written)) for _ in range(4)]
    html = compare(client, *(job.id for job in jobs))
    assert "At most 3 jobs" in html
    assert f'href="/ui/jobs/{jobs[3].id}"' not in html


def test_only_differing_fields_are_listed(job: JobRecord, other: JobRecord) -> None:
    rows = {row.label: row.cells for row in spec_differences([job, other])}
    assert rows["student.arch"] == ["resnet8", "resnet14"]
    assert rows["distillation.steps"] == ["10", "20"]
    assert rows["evaluation.shards"] == [ABSENT, "held-out.tar"]
    assert "teacher.arch" not in rows
    assert "name" not in rows
    assert spec_differences([job, job]) == []


def test_each_value_has_a_chart_in_which_jobs_are_lines(job: JobRecord, other: JobRecord) -> None:
    charts = {chart.id: chart for chart in comparison_charts([job, other])}
    assert {"inversion-bn", "inversion-one_hot", "kd-loss-loss", "images-rate", "steps-rate"} <= set(charts)
    assert charts["kd-loss-loss"].units_of_jobs == {0: 1, 1: 1}
    assert charts["images-rate"].units_of_jobs == {0: 4, 1: 4}
    assert charts["accuracy-student_top1"].units_of_jobs == {1: 1}
    assert all(len(chart.series) == 1 for chart in charts.values())


def test_results_stand_beside_each_other(
    client: TestClient, broker: Broker, storage: Storage, written: dict[str, Any], job: JobRecord
) -> None:
    complete(broker, storage)
    done, queued = broker.jobs.get(job.id), broker.jobs.create(JobSpec.model_validate(written))
    rows = {row.label: row.cells for row in results_of([done, queued])}
    assert rows["Images"] == [8, None]
    assert rows["From start to end"][1] is None
    assert "None of these jobs" not in compare(client, done.id, queued.id)


def test_jobs_of_others_are_neither_offered_nor_shown_where_jobs_are_private(
    settings: Settings, broker: Broker, written: dict[str, Any]
) -> None:
    hers, his = (broker.jobs.create(JobSpec.model_validate(written), owner=name) for name in ("alice", "bob"))
    with TestClient(create_app(with_keys(settings, own_jobs_only=True))) as client:
        html = client.get("/ui/compare", params={"job": [hers.id, his.id]}, headers=bearer("bob")).text
    assert f"There is no job <code>{hers.id}</code>" in html
    assert f'value="{hers.id}"' not in html
    assert f'value="{his.id}"' in html
