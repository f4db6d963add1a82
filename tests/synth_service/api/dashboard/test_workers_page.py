import time

from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord
from synth_service.api.dashboard.workers_page import STALE_SECONDS, WorkerRow


def test_a_worker_is_listed_with_its_device_and_its_job(client: TestClient, broker: Broker, job: JobRecord) -> None:
    fields: dict[str, str | int | float] = {
        "role": "synthesis",
        "device": "cuda:0",
        "device_name": "A100",
        "memory_total_bytes": 80e9,
        "memory_available_bytes": 20e9,
        "process_memory_bytes": 2.5e9,
        "cpu_percent": 104.4,
        "gpu_percent": 97.0,
        "job": job.id,
        "at": time.time(),
    }
    broker.workers.register("synthesis-host-1", fields, ttl_seconds=60)
    page = client.get("/ui/workers").text
    assert "synthesis-host-1" in page
    assert "60.0 GB of 80.0 GB" in page
    assert "2.5 GB" in page
    assert "CPU 104\u202f%" in page.replace("&#8239;", "\u202f")
    assert "GPU 97\u202f%" in page.replace("&#8239;", "\u202f")
    assert f'href="/ui/jobs/{job.id}"' in page
    assert ">working<" in page


def test_a_worker_that_was_silent_for_long_is_marked(client: TestClient, broker: Broker) -> None:
    fields: dict[str, str | int | float] = {"role": "distillation", "job": "", "at": time.time() - STALE_SECONDS - 1}
    broker.workers.register("distillation-host-2", fields, ttl_seconds=60)
    assert ">stale<" in client.get("/ui/workers").text


def test_what_a_worker_of_another_version_says_does_no_harm(client: TestClient, broker: Broker) -> None:
    fields: dict[str, str | int | float] = {
        "role": "<b>new</b>",
        "memory_total_bytes": "much",
        "job": "javascript:alert(1)",
        "news": 1,
    }
    broker.workers.register("odd", fields, ttl_seconds=60)
    page = client.get("/ui/workers")
    assert page.status_code == 200
    assert "<b>new" not in page.text
    assert 'href="javascript' not in page.text


def test_a_queue_that_nobody_serves_is_pointed_out(client: TestClient, job: JobRecord) -> None:
    page = client.get("/ui/workers").text
    assert "No synthesis worker was heard of lately" in page
    assert "No distillation worker was heard of lately" in page


def test_without_workers_the_page_tells_how_to_start_some(client: TestClient) -> None:
    page = client.get("/ui/workers").text
    assert "dfkd up" in page
    assert "was heard of lately" not in page


def test_a_list_that_has_not_changed_is_not_sent_again(client: TestClient, broker: Broker) -> None:
    known = {"If-None-Match": client.get("/ui/workers/list").headers["etag"]}
    assert client.get("/ui/workers/list", headers=known).status_code == 304
    broker.workers.register("one", {"role": "synthesis", "at": time.time()}, ttl_seconds=60)
    assert client.get("/ui/workers/list", headers=known).status_code == 200


def test_memory_in_use_is_what_is_not_available() -> None:
    row = WorkerRow.of({"name": "w", "memory_total_bytes": "10", "memory_available_bytes": "4"}, now=0.0)
    assert row.memory_used_bytes == 6
    assert row.cpu_percent is None
