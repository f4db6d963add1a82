"""``GET /metrics`` as Prometheus reads it."""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from shared.broker import Broker
from shared.jobs import JobRecord, Measurement, Role
from shared.settings import Settings
from shared.storage import Storage
from synth_service.api.app import create_app
from synth_service.api.routes.metrics_page import Metrics, RequestMetricsMiddleware
from tests.conftest import free_port
from tests.synth_service.api.conftest import announce, claim, complete

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(client: TestClient, name: str, **labels: str) -> float | None:
    response = client.get("/metrics")
    assert response.status_code == 200
    return parse(response.text).get((name, frozenset(labels.items())))


def test_it_is_the_text_format_of_prometheus(client: TestClient) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert parse(response.text)["process_resident_memory_bytes", frozenset()] > 1e6
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_the_last_evaluation_shows_by_metric_whatever_the_task(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    assert value(client, "dfkd_newest_evaluation", metric="student_miou") is None
    attempt = claim(broker, Role.DISTILLATION)
    for step, miou in ((10, 0.25), (20, 0.5)):
        metrics = {"student_miou": miou, "teacher_miou": 0.9, "agreement": 0.75}
        broker.reports.report(attempt, measurement=Measurement.of(step, metrics))

    assert value(client, "dfkd_newest_evaluation", metric="student_miou") == 0.5
    assert value(client, "dfkd_newest_evaluation", metric="agreement") == 0.75
    assert value(client, "dfkd_newest_evaluation", metric="student_top1") is None


def test_the_work_of_a_job_shows(client: TestClient, broker: Broker, storage: Storage, job: JobRecord) -> None:
    assert value(client, "dfkd_jobs", state="queued") == 1
    assert value(client, "dfkd_queue_waiting_tasks", role="synthesis") == 1
    attempt = claim(broker, Role.SYNTHESIS)
    announce(broker, storage, attempt, 0)
    assert value(client, "dfkd_queue_waiting_tasks", role="synthesis") == 0
    assert value(client, "dfkd_queue_tasks", role="synthesis") == 1
    assert value(client, "dfkd_shard_lag") == value(client, "dfkd_shard_lag_greatest") == 1
    assert value(client, "dfkd_images_total") == 4
    assert value(client, "dfkd_shard_bytes_total") == 300
    broker.workers.register("w", {"role": "synthesis", "job": job.id}, ttl_seconds=60)
    assert value(client, "dfkd_workers", role="synthesis", state="busy") == 1
    assert value(client, "dfkd_worker_heartbeat_age_seconds", role="synthesis", worker="w") == pytest.approx(0, abs=2)


def test_counters_survive_a_restart_of_the_api_and_the_deletion_of_the_job(
    client: TestClient, settings: Settings, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    complete(broker, storage)
    assert client.delete(f"/jobs/{job.id}").status_code < 300
    with TestClient(create_app(settings)) as restarted:
        assert value(restarted, "dfkd_jobs", state="succeeded") == 0
        assert value(restarted, "dfkd_jobs_created_total") == 1
        assert value(restarted, "dfkd_jobs_finished_total", state="succeeded") == 1
        assert value(restarted, "dfkd_images_total") == 8
        assert value(restarted, "dfkd_distillation_steps_total") == 10
        assert value(restarted, "dfkd_attempts_total", role="distillation", event="started") == 1


def test_requests_are_counted_by_route_and_class_and_made_up_paths_and_methods_share_a_series(
    client: TestClient, job: JobRecord
) -> None:
    client.get(f"/jobs/{job.id}")
    client.get("/jobs/job-00000000000000000000")
    for number in range(3):
        client.get(f"/made/up/{number}")
        client.request(f"MADE{number}", "/jobs")
    count = "dfkd_http_request_seconds_count"
    assert value(client, count, method="GET", route="/jobs/{job_id}", status="2xx") == 1
    assert value(client, count, method="GET", route="/jobs/{job_id}", status="4xx") == 1
    assert value(client, count, method="GET", route="none", status="4xx") == 3
    text = client.get("/metrics").text
    assert "made/up" not in text
    assert "MADE" not in text
    assert 'method="OTHER"' in text


def test_no_series_names_a_job(client: TestClient, broker: Broker, storage: Storage, job: JobRecord) -> None:
    complete(broker, storage)
    client.get(f"/jobs/{job.id}")
    assert job.id not in client.get("/metrics").text


def test_an_error_of_the_service_counts_as_such(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/broken").status_code == 500
        count = "dfkd_http_request_seconds_count"
        assert value(client, count, method="GET", route="/broken", status="5xx") == 1


def test_without_redis_it_still_tells_what_it_knows(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}"})
    with TestClient(create_app(away)) as client:
        client.get("/jobs")
        assert value(client, "dfkd_redis_up") == 0
        assert value(client, "dfkd_jobs", state="queued") is None
        assert value(client, "dfkd_storage_free_bytes")
        assert value(client, "dfkd_http_request_seconds_count", method="GET", route="/jobs", status="5xx") == 1


def test_a_key_guards_it_unless_the_operator_opened_it(settings: Settings) -> None:
    key = "k" * 32
    guarded = Settings.model_validate({**settings.model_dump(), "api_keys": f"prometheus:{key}"})
    with TestClient(create_app(guarded)) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    opened = guarded.model_copy(update={"public_metrics": True})
    with TestClient(create_app(opened)) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/jobs").status_code == 401


def test_a_stream_of_hours_counts_until_its_head_and_is_in_progress_until_its_end(
    broker: Broker, storage: Storage
) -> None:
    metrics = Metrics(broker, storage)
    may_end = asyncio.Event()

    async def stream(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await may_end.wait()
        await send({"type": "http.response.body", "body": b""})

    async def ignore(*_: Message) -> Any: ...

    def counted() -> tuple[float | None, float | None]:
        labels = {"method": "GET", "route": "none", "status": "2xx"}
        return (
            metrics.registry.get_sample_value("dfkd_http_request_seconds_count", labels),
            metrics.registry.get_sample_value("dfkd_http_requests_in_progress"),
        )

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/x"}
        request = asyncio.create_task(RequestMetricsMiddleware(stream, metrics)(scope, ignore, ignore))
        await asyncio.sleep(0)
        assert counted() == (1, 1)
        may_end.set()
        await request
        assert counted() == (1, 0)

    asyncio.run(run())
