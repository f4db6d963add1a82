import json
import re
from html import unescape
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import JobRecord, Measurement, Role
from shared.settings import Settings
from shared.shards.previews import Strip, Tile, encode_strip
from shared.specs import JobSpec
from shared.storage import Storage, job_paths
from synth_service.api.app import create_app
from synth_service.api.dashboard import job_history
from synth_service.api.dashboard.job_history import NEWEST_EVENTS, SHARDS_PER_PAGE, EventDigest, JobHistory
from synth_service.api.dashboard.job_page import curl_command, submit_command
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.api.keys import bearer, with_keys

HTML = {"Accept": "text/html"}
BASE = "http://testserver/"


def page(client: TestClient, job: JobRecord, part: str = "") -> str:
    answer = client.get(f"/ui/jobs/{job.id}{part}", headers=HTML)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def actions(html: str) -> set[str]:
    return set(re.findall(r'id="action-(\w+)"', html))


def attribute(html: str, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', html)
    assert found, name
    return unescape(found[1])


def test_a_queued_job_says_that_it_waits_and_can_be_cancelled(client: TestClient, job: JobRecord) -> None:
    html = page(client, job)
    assert "badge-queued" in html
    assert "Waiting for a worker" in html
    assert actions(html) == {"cancel"}
    assert f'data-action="POST /jobs/{job.id}/cancel"' in html
    assert "Download" not in html


def test_a_running_job_shows_progress_accuracy_and_how_far_synthesis_is_ahead(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    announce(broker, storage, synthesis, 0)
    broker.leases.renew(synthesis, done=4, rate=2.0)
    measured = Measurement(step=5, student_top1=0.875, teacher_top1=1.0, agreement=0.9)
    broker.reports.report(distillation, EventType.EVALUATED, {"step": 5}, measurement=measured)
    html = page(client, job, "/status")
    assert "4 of 8 images" in html
    assert 'value="50.0"' in html
    assert "about 2.0 s left" in html
    assert "87.5\u202f%" in html
    assert attribute(html, "data-lag") == "1"
    assert actions(html) == {"cancel"}
    assert f"/jobs/{job.id}/archive" in html


def test_a_finished_job_offers_what_it_made(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    complete(broker, storage)
    html = page(client, job)
    assert attribute(html, "data-final") == "true"
    assert actions(html) == {"delete"}
    assert f'href="/jobs/{job.id}/student"' in html
    assert f'href="/jobs/{job.id}/archive"' in html


def test_a_student_that_was_exported_can_be_had_in_each_form(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    for index in range(2):
        announce(broker, storage, synthesis, index)
    broker.leases.finish(synthesis)
    result: dict[str, object] = {"exports": {"onnx": "student.onnx"}, "exports_failed": {"torchscript": "no"}}
    broker.leases.finish(distillation, folder_completed=True, result=result)
    html = page(client, job, "/status")
    assert f'href="/jobs/{job.id}/student?format=onnx"' in html
    assert "format=torchscript" not in html


def test_a_failed_job_says_why_and_what_to_do(client: TestClient, broker: Broker, job: JobRecord) -> None:
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError("bad_checkpoint", "<b>no</b> such file"))
    html = page(client, job)
    assert 'role="alert"' in html
    assert "bad_checkpoint" in html
    assert "&lt;b&gt;no&lt;/b&gt; such file" in html
    assert "Correct the specification" in html
    assert actions(html) == {"retry", "delete"}


def test_the_buttons_call_routes_that_there_are(client: TestClient, broker: Broker, job: JobRecord) -> None:
    for expected in ("cancel", "retry", "cancel", "delete"):
        html = page(client, job, "/status")
        assert expected in actions(html)
        button = next(each for each in re.findall(r"<button[^>]*>", html) if f"action-{expected}" in each)
        assert "data-confirm=" in button
        method, url = attribute(button, "data-action").split(" ")
        assert client.request(method, url).is_success
    assert client.get(f"/ui/jobs/{job.id}", headers=HTML).status_code == 404


@pytest.mark.parametrize("part", ["", "/status", "/shards", "/classes"])
def test_a_job_that_there_is_not_is_a_404(client: TestClient, part: str) -> None:
    assert client.get(f"/ui/jobs/job-{'0' * 20}{part}").status_code == 404
    assert client.get(f"/ui/jobs/nonsense{part}").status_code == 422


def test_pages_hold_no_inline_code_and_escape_what_users_wrote(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    hostile = "\"'><script>alert(1)</script>{{ 7 * 7 }}"
    job = broker.jobs.create(JobSpec.model_validate({**written, "name": hostile, "metadata": {hostile[:60]: hostile}}))
    for part in ("", "/status", "/shards", "/classes"):
        html = page(client, job, part)
        assert "<script>" not in html
        assert not re.search(r"<style|\sstyle=|\son\w+=", html)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))
    assert "7 * 7" in page(client, job)


def test_the_charts_that_the_browser_draws_are_described(client: TestClient, job: JobRecord) -> None:
    html = page(client, job)
    charts = json.loads(attribute(html, "data-charts"))
    assert [chart["id"] for chart in charts] == re.findall(r'<figure class="chart" id="chart-([\w-]+)"', html)
    asked = client.get(f"/jobs/{job.id}/metrics", params={"points": attribute(html, "data-points")})
    assert asked.status_code == 200


def test_the_commands_run_the_same_job_again(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    name = "JOB\nJOB\n'$(rm -rf /)' ütf"
    job = broker.jobs.create(JobSpec.model_validate({**written, "name": name}))
    for command in (submit_command(job, BASE), curl_command(job, BASE)):
        head, _, document = command.partition("<<'JOB'\n")
        assert "http://testserver" in head
        lines = document.split("\n")
        assert lines.index("JOB") == len(lines) - 1
        again = client.post("/jobs", json=json.loads("\n".join(lines[:-1])))
        assert again.status_code == 202
        assert again.json()["spec"] == job.spec
        assert unescape(page(client, job)).count(command) == 1


def test_shards_are_listed_newest_first_in_pages(client: TestClient, broker: Broker, storage: Storage) -> None:
    written = {
        "teacher": {"arch": "resnet20", "num_classes": 3, "checkpoint": "teacher.pt"},
        "synthesis": {"num_images": 100, "batch_size": 4},
        "distillation": None,
    }
    job = broker.jobs.create(JobSpec.model_validate(written))
    assert "No shard has been sealed" in page(client, job, "/shards")
    assert "No shard has been sealed" in page(client, job, "/classes")
    attempt = claim(broker, Role.SYNTHESIS)
    count = 2 * SHARDS_PER_PAGE + 3
    manifests = [announce(broker, storage, attempt, index) for index in range(count)]

    def listed(number: int) -> list[str]:
        return re.findall(rf'href="/jobs/{job.id}/shards/([^"]+)"', page(client, job, f"/shards?page={number}"))

    pages = [listed(number) for number in (1, 2, 3)]
    assert [name for names in pages for name in names] == [manifest.name for manifest in reversed(manifests)]
    assert len(pages[0]) == 3
    assert listed(99) == pages[-1]
    assert manifests[-1].sha256 in page(client, job, "/shards")
    assert f"{4 * count} images" in page(client, job, "/classes")


def test_a_shard_that_was_quarantined_is_no_longer_counted(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    synthesis, distillation = claim(broker, Role.SYNTHESIS), claim(broker, Role.DISTILLATION)
    for index in range(2):
        announce(broker, storage, synthesis, index)
    assert "8 images" in page(client, job, "/classes")
    broker.shards.quarantine(distillation, next(broker.shards.until(job.id)), "sha256")
    assert "4 images" in page(client, job, "/classes")
    announce(broker, storage, synthesis, 2)
    assert "8 images" in page(client, job, "/classes")


def test_the_log_begins_with_the_newest_events_of_a_long_story(
    client: TestClient, broker: Broker, job: JobRecord
) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    for number in range(NEWEST_EVENTS + 20):
        broker.reports.report(attempt, EventType.STUDENT_PUBLISHED, {"version": number})
    after = attribute(page(client, job), "data-log-starts-after")
    assert len(broker.reports.events(job.id, after=after)) == NEWEST_EVENTS


def test_a_very_long_story_is_read_over_several_looks(
    client: TestClient, broker: Broker, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_history, "EVENTS_READ_AT_ONCE", 20)
    monkeypatch.setattr(job_history, "EVENT_BATCH", 10)
    attempt = claim(broker, Role.DISTILLATION)
    for number in range(30):
        broker.reports.report(attempt, EventType.STUDENT_PUBLISHED, {"version": number})
    assert attribute(page(client, job), "data-behind") == "true"
    assert attribute(page(client, job, "/status"), "data-behind") == "false"


def test_a_second_look_reads_only_what_is_new(broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    history = JobHistory()
    before = history.events(broker, job.id)
    broker.reports.report(attempt, EventType.STUDENT_PUBLISHED, {"version": 1})
    broker.leases.release(attempt, "worker stopping")
    after = history.events(broker, job.id)
    assert after.count == before.count + 2
    assert [event.type for event in after.milestones] == ["job_created", "attempt_started", "attempt_released"]
    fresh = EventDigest()
    fresh.read_on(broker, job.id)
    assert fresh == after


def test_a_page_of_a_long_job_is_small(client: TestClient, broker: Broker, job: JobRecord) -> None:
    attempt = claim(broker, Role.DISTILLATION)
    for number in range(3000):
        broker.reports.report(attempt, step=number, metrics={"loss": number % 7 / 7, "learning_rate": 1 / (number + 1)})
    html = page(client, job)
    metrics = client.get(f"/jobs/{job.id}/metrics", params={"points": attribute(html, "data-points")})
    assert len(html) + len(metrics.content) < 200_000


def test_the_page_of_somebody_elses_job_is_a_404_where_jobs_are_private(
    settings: Settings, broker: Broker, written: dict[str, Any]
) -> None:
    job = broker.jobs.create(JobSpec.model_validate(written), owner="alice")
    with TestClient(create_app(with_keys(settings, own_jobs_only=True))) as client:
        for part in ("", "/status", "/shards", "/classes"):
            assert client.get(f"/ui/jobs/{job.id}{part}", headers=bearer("alice")).status_code == 200
            assert client.get(f"/ui/jobs/{job.id}{part}", headers=bearer("bob")).status_code == 404


def test_the_picture_is_there_or_is_nothing_and_never_an_error(
    client: TestClient, storage: Storage, job: JobRecord
) -> None:
    for query in ("", "?class=3"):
        assert client.get(f"/ui/jobs/{job.id}/picture{query}").status_code == 204
    tile = Tile(3, bytes(range(16)))
    storage.put_bytes(encode_strip(Strip(4, 4, 1, (tile,))), job_paths.preview(job.id, 0, 1, 4))
    for query, expected in (("", 200), ("?class=3", 200), ("?class=4", 204)):
        answer = client.get(f"/ui/jobs/{job.id}/picture{query}")
        assert answer.status_code == expected
    assert client.get(f"/ui/jobs/{job.id}/picture").headers["content-type"] == "image/png"


def test_of_a_job_without_previews_the_grid_is_shown(client: TestClient, storage: Storage, job: JobRecord) -> None:
    storage.put_bytes(b"a grid", job_paths.grid(job.id))
    assert client.get(f"/ui/jobs/{job.id}/picture").content == b"a grid"
    assert client.get(f"/ui/jobs/{job.id}/picture?class=3").status_code == 204


def test_a_job_that_has_ended_shows_its_grid(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    tile = Tile(3, bytes(range(16)))
    storage.put_bytes(encode_strip(Strip(4, 4, 1, (tile,))), job_paths.preview(job.id, 0, 1, 4))
    storage.put_bytes(b"a grid", job_paths.grid(job.id))
    before = client.get(f"/ui/jobs/{job.id}/picture")
    assert "x-picture" not in before.headers
    complete(broker, storage)
    after = client.get(f"/ui/jobs/{job.id}/picture")
    assert (after.content, after.headers["x-picture"]) == (b"a grid", "grid")
    assert re.search(r"images, 8 in class|8\s+in each|\d in (each|a) (class|bar)", page(client, job, "/classes"))


@pytest.mark.parametrize(
    ("code", "primary"), [("checkpoint_not_found", "action-retry"), ("wrong_output_shape", "action-start-from")]
)
def test_the_first_choice_after_a_failure_is_what_can_help(
    client: TestClient, broker: Broker, job: JobRecord, code: str, primary: str
) -> None:
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError(code, "what is wrong"))
    html = page(client, job)
    assert re.findall(r'class="button button-primary" id="([\w-]+)"', html) == [primary]
    assert actions(html) >= {"retry"}


def test_the_page_shows_how_far_a_program_that_trains_is_behind(
    client: TestClient, broker: Broker, storage: Storage, written: dict[str, Any]
) -> None:
    spec = {name: part for name, part in written.items() if name != "student"} | {"distillation": "external"}
    job = broker.jobs.create(JobSpec.model_validate(spec))
    attempt = claim(broker, Role.SYNTHESIS)
    for index in range(2):
        announce(broker, storage, attempt, index)
    assert "your program is 2 behind" in page(client, job, "/status")
    broker.shards.used_up(job.id, broker.shards.read(job.id, "0")[0].position)
    html = page(client, job, "/status")
    assert "your program is 1 behind" in html
    assert "(your program trains)" in html
    assert attribute(html, "data-lag") == "1"
    assert "Shards announced that your program has yet to use up." in page(client, job)
