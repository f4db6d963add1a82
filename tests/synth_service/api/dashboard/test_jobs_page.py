import re
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.errors import UserError
from shared.jobs import JobRecord, Measurement, Role, State
from shared.settings import Settings
from shared.specs import JobSpec
from shared.storage import Storage
from synth_service.api.app import create_app
from synth_service.api.dashboard.jobs_page import JOBS_PER_PAGE, JobRow
from tests.synth_service.api.conftest import claim
from tests.synth_service.api.keys import bearer, with_keys

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_browser_that_opens_the_service_is_shown_the_jobs(client: TestClient) -> None:
    assert [step.headers["location"] for step in client.get("/", headers=HTML).history] == ["/ui/"]
    assert client.get("/ui", headers=HTML).url.path == "/ui/"


def test_without_jobs_the_page_tells_how_to_submit_the_first(client: TestClient) -> None:
    page = client.get("/ui/").text
    assert "dfkd run my-teacher.pt" in page
    assert 'href="/ui/new"' in page
    assert "<table" not in page


def test_a_job_is_listed_with_what_people_ask_first(client: TestClient, broker: Broker, job: JobRecord) -> None:
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    broker.leases.renew(synthesis, done=2, rate=0.1)
    broker.leases.renew(distillation, done=5, rate=0.5)
    measurement = Measurement(step=5, student_top1=0.9956, teacher_top1=1, agreement=0.9)
    broker.reports.report(distillation, measurement=measurement)
    page = client.get("/ui/").text
    assert f'href="/ui/jobs/{job.id}"' in page
    assert 'badge-running">running' in page
    assert re.search(r"resnet20.*→.*resnet8", page)
    assert re.search(r'<progress class="bar bar-running" max="100" value="25.0" aria-label="Synthesis of digits"', page)
    assert re.search(
        r'<progress class="bar bar-running" max="100" value="50.0" aria-label="Distillation of digits"', page
    )
    assert "99.6\u202f%" in page
    assert "1 min left" in page


def test_names_are_text_whatever_they_contain(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    broker.jobs.create(JobSpec.model_validate(written | {"name": '<script>alert("1")</script>'}))
    page = client.get("/ui/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_a_failed_job_says_why(client: TestClient, broker: Broker, job: JobRecord) -> None:
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError("checkpoint_mismatch", "12 keys are missing"))
    page = client.get("/ui/?state=failed").text
    assert "12 keys are missing" in page
    assert "badge-failed" in page


def test_a_stage_whose_worker_has_not_heard_of_the_end_does_not_run(broker: Broker, job: JobRecord) -> None:
    synthesis, _ = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    broker.leases.fail(synthesis, UserError("checkpoint_mismatch", "12 keys are missing"))
    synthesis_bar, distillation_bar = JobRow.of(broker.jobs.get(job.id)).bars
    assert synthesis_bar is not None
    assert synthesis_bar.state is State.FAILED
    assert distillation_bar is not None
    assert distillation_bar.state is State.CANCELLED


def test_a_job_without_a_student_has_no_second_bar(broker: Broker, written: dict[str, Any]) -> None:
    job = broker.jobs.create(JobSpec.model_validate(written | {"student": None, "distillation": None}))
    row = JobRow.of(job)
    assert row.student is None
    assert row.bars[1] is None


def test_jobs_are_filtered_by_state_and_name(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    for name in ("first", "second"):
        broker.jobs.create(JobSpec.model_validate(written | {"name": name}))
    assert names(client.get("/ui/?name=SEC").text) == ["second"]
    assert sorted(names(client.get("/ui/?state=queued&name=").text)) == ["first", "second"]
    page = client.get("/ui/?state=failed&name=sec").text
    assert names(page) == []
    assert "There is no failed job with “sec” in its name." in page


def test_pages_follow_each_other_without_gap_or_repetition(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    for index in range(JOBS_PER_PAGE + 2):
        broker.jobs.create(JobSpec.model_validate(written | {"name": f"job {index}"}))
    first = client.get("/ui/?name=job").text
    following = re.search(r'href="(/ui/\?[^"]*)" rel="next"', first)
    assert following is not None
    second = client.get(following[1].replace("&amp;", "&")).text
    everything, _ = broker.jobs.list(limit=100)
    assert names(first) + names(second) == [job.name for job in everything]
    assert len(everything) == JOBS_PER_PAGE + 2
    assert 'rel="next"' not in second


def test_a_list_that_has_not_changed_is_not_sent_again(client: TestClient, broker: Broker, job: JobRecord) -> None:
    first = client.get("/ui/jobs")
    known = {"If-None-Match": first.headers["etag"]}
    assert client.get("/ui/jobs", headers=known).status_code == 304
    broker.leases.renew(claim(broker, Role.SYNTHESIS), done=3, rate=1.0)
    again = client.get("/ui/jobs", headers=known)
    assert again.status_code == 200
    assert again.text.lstrip().startswith("<section")
    assert "3 images" in again.text


def test_the_address_follows_what_is_typed_into_the_filter(client: TestClient, job: JobRecord) -> None:
    typed = client.get("/ui/jobs?name=dig&state=", headers={"HX-Request": "true", "HX-Trigger-Name": "name"})
    assert typed.headers["hx-replace-url"] == "/ui/?name=dig"
    assert "hx-replace-url" not in client.get("/ui/jobs?name=dig", headers={"HX-Request": "true"}).headers


@pytest.mark.parametrize("query", ["state=bogus", "after=x", "name=" + 201 * "a"])
def test_an_address_that_cannot_be_is_refused_in_words(client: TestClient, query: str) -> None:
    answer = client.get(f"/ui/?{query}", headers=HTML)
    assert answer.status_code == 422
    assert "This address is not valid" in answer.text


def test_five_hundred_jobs_are_no_burden(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(written)
    for _ in range(500):
        broker.jobs.create(spec)
    client.get("/ui/")
    commands = calls(broker)
    started = time.thread_time()
    page = client.get("/ui/")
    assert calls(broker) - commands < 10 + 2 * JOBS_PER_PAGE  # a pipeline of one page, however many jobs there are
    assert time.thread_time() - started < 0.3
    assert len(page.content) < 100_000


def test_only_ones_own_jobs_are_listed_where_keys_are_kept_apart(
    settings: Settings, broker: Broker, written: dict[str, Any]
) -> None:
    broker.jobs.create(JobSpec.model_validate(written | {"name": "of alice"}), owner="alice")
    with TestClient(create_app(with_keys(settings, own_jobs_only=True))) as client:
        assert names(client.get("/ui/", headers=bearer("alice")).text) == ["of alice"]
        assert names(client.get("/ui/", headers=bearer("bob")).text) == []
        assert names(client.get("/ui/jobs", headers=bearer("bob")).text) == []


def names(page: str) -> list[str]:
    return re.findall(r'class="job-name[^>]*>([^<]*)<', page)


def calls(broker: Broker) -> int:
    stats = broker.redis.info("commandstats")
    return sum(each["calls"] for command, each in stats.items() if command != "cmdstat_info")


def test_an_empty_dashboard_offers_the_example_and_starts_it(
    client: TestClient, broker: Broker, storage: Storage
) -> None:
    html = client.get("/ui/", headers={"Accept": "text/html"}).text
    assert 'data-action="POST /ui/examples/digits" data-then="job"' in html
    assert 'href="/ui/new"' in html
    answer = client.post("/ui/examples/digits")
    assert answer.status_code == 202, answer.text
    job = broker.jobs.get(answer.json()["id"])
    assert job.name == "digits"
    assert storage.exists("digits/teacher.safetensors")
    assert storage.exists("digits/held-out.tar")
    assert "Run the digits example" not in client.get("/ui/", headers={"Accept": "text/html"}).text
