import shutil

from starlette.testclient import TestClient

from shared.broker import Broker
from shared.settings import Settings
from shared.specs.architectures import ARCHITECTURES
from shared.specs.presets import PRESETS
from shared.storage import Storage
from synth_service.api.app import create_app
from tests.conftest import free_port
from tests.synth_service.api.test_problems import problem


def test_it_is_healthy_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_without_redis_it_is_healthy_but_not_ready_and_every_call_is_503(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}"})
    with TestClient(create_app(away)) as client:
        assert client.get("/healthz").status_code == 200
        assert "Redis" in problem(client.get("/readyz"), 503, "redis_unavailable").detail
        response = client.get("/jobs")
        problem(response, 503, "redis_unavailable")
        assert "retry-after" in response.headers


def test_a_storage_folder_that_has_gone_is_not_ready_and_is_not_made_again(
    client: TestClient, storage: Storage
) -> None:
    shutil.rmtree(storage.root)
    found = problem(client.get("/readyz"), 503, "storage_unavailable")
    assert "StorageUnavailable" in found.detail
    assert storage.root not in found.detail
    assert client.get("/readyz").status_code == 503


def test_architectures_and_presets_are_listed(client: TestClient) -> None:
    architectures = client.get("/architectures").json()
    assert [each["name"] for each in architectures["data"]] == list(ARCHITECTURES)
    assert "torchvision:NAME" in architectures["forms"]
    presets = client.get("/presets").json()["data"]
    assert [each["name"] for each in presets] == list(PRESETS)
    assert [each["name"] for each in presets if each["is_default"]] == ["fast-5"]


def test_what_workers_measure_is_a_number_or_null(client: TestClient, broker: Broker) -> None:
    told: dict[str, str | int | float] = {
        "memory_total_bytes": 2**34,
        "process_memory_bytes": 7,
        "cpu_percent": 12.5,
        "pid": 3,
        "gpu_percent": "?",
    }
    broker.workers.register("a", told, ttl_seconds=60)
    (worker,) = client.get("/workers").json()["data"]
    assert worker == {**told, "name": "a", "gpu_percent": None}


def test_workers_are_listed_with_what_they_tell_of_themselves(client: TestClient, broker: Broker) -> None:
    broker.workers.register("b", {"role": "synthesis", "job": "", "at": 1.5, "device": "cpu"}, ttl_seconds=60)
    broker.workers.register("a", {"role": "distillation", "job": "job-1", "at": 2}, ttl_seconds=60)
    assert client.get("/workers").json()["data"] == [
        {"name": "a", "role": "distillation", "job": "job-1", "at": 2.0},
        {"name": "b", "role": "synthesis", "job": "", "at": 1.5, "device": "cpu"},
    ]


def test_readiness_tells_strangers_no_addresses(settings: Settings) -> None:
    port = free_port()
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}"})
    with TestClient(create_app(away)) as client:
        found = problem(client.get("/readyz"), 503, "redis_unavailable")
    assert "127.0.0.1" not in found.detail
    assert str(port) not in found.detail


def test_a_server_that_takes_no_writes_is_not_ready(client: TestClient, broker: Broker) -> None:
    broker.redis.config_set("maxmemory", "1")
    try:
        problem(client.get("/readyz"), 503, "redis_unavailable")
    finally:
        broker.redis.config_set("maxmemory", "0")


def test_readiness_is_found_out_once_a_second_however_often_it_is_asked(client: TestClient, broker: Broker) -> None:
    client.get("/readyz")
    before = int(broker.redis.info("stats")["total_commands_processed"])
    for _ in range(10):
        assert client.get("/readyz").status_code == 200
    spent = int(broker.redis.info("stats")["total_commands_processed"]) - before
    assert spent < 10  # on a machine that is busy, a second may pass
