"""How much the owner of a key may have at a time: jobs that wait or run, bytes of checkpoints and datasets."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.api_keys import new_api_key
from shared.broker import Broker, keys
from shared.jobs import Role
from shared.settings import Settings
from synth_service.api.app import create_app
from tests.attack.checkpoints import GOOD, archive
from tests.synth_service.api.conftest import claim
from tests.synth_service.api.keys import with_keys
from tests.synth_service.api.test_problems import problem

LIMITED = new_api_key("limited", ["queued-jobs=2", "running-jobs=1", "bytes=200000"])
FREE = new_api_key("free")
UPLOAD = archive(GOOD)


def shown(made: tuple[str, str]) -> dict[str, str]:
    return {"X-API-Key": made[0]}


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(with_keys(settings, api_keys=f"{LIMITED[1]},{FREE[1]}"))


def submit(client: TestClient, written: dict[str, Any], made: tuple[str, str] = LIMITED) -> Any:
    return client.post("/jobs", json=written, headers=shown(made))


def test_waiting_jobs_are_limited_for_the_key_and_others_go_on(client: TestClient, written: dict[str, Any]) -> None:
    first = submit(client, written).json()["id"]
    assert submit(client, written).status_code == 202
    refused = submit(client, written)
    problem(refused, 429, "too_many_queued_jobs")
    assert int(refused.headers["retry-after"]) > 0
    assert submit(client, written, FREE).status_code == 202
    client.post(f"/jobs/{first}/cancel", headers=shown(LIMITED))
    assert submit(client, written).status_code == 202
    problem(client.post(f"/jobs/{first}/retry", headers=shown(LIMITED)), 429, "too_many_queued_jobs")


def test_running_jobs_are_limited(client: TestClient, written: dict[str, Any], broker: Broker) -> None:
    job = submit(client, written).json()["id"]
    claim(broker, Role.SYNTHESIS)
    assert client.get(f"/jobs/{job}", headers=shown(FREE)).json()["state"] == "running"
    problem(submit(client, written), 429, "too_many_running_jobs")
    assert submit(client, written, FREE).status_code == 202


def test_bytes_of_uploads_and_datasets_are_limited_together(
    client: TestClient, written: dict[str, Any], broker: Broker
) -> None:
    body = archive(GOOD, {"archive/data/1": bytes(120_000)})
    uploaded = client.post("/models", content=body, headers=shown(LIMITED))
    assert uploaded.status_code == 201
    problem(client.post("/models", content=body, headers=shown(LIMITED)), 403, "storage_allowance_used")
    chunked = client.post("/models", content=iter([body]), headers=shown(LIMITED))
    problem(chunked, 403, "storage_allowance_used")
    large = written | {"synthesis": {"num_images": 16, "batch_size": 4}}
    problem(submit(client, large), 403, "storage_allowance_used")
    assert client.post("/models", content=body, headers=shown(FREE)).status_code == 201
    assert client.delete(f"/models/{uploaded.json()['id']}", headers=shown(LIMITED)).status_code == 204
    job = submit(client, written).json()["id"]
    broker.redis.hset(keys.job(job), "shard_bytes", 199_000)
    problem(client.post("/models", content=body, headers=shown(LIMITED)), 403, "storage_allowance_used")


@pytest.fixture
def for_all(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(with_keys(settings, api_keys=FREE[1], max_queued_jobs_per_key=1))) as client:
        yield client


def test_the_settings_limit_keys_that_say_nothing_themselves(for_all: TestClient, written: dict[str, Any]) -> None:
    assert submit(for_all, written, FREE).status_code == 202
    problem(submit(for_all, written, FREE), 429, "too_many_queued_jobs")


def test_what_a_key_has_is_counted_from_what_there_is(client: TestClient, broker: Broker) -> None:
    uploaded = client.post("/models", content=UPLOAD, headers=shown(LIMITED)).json()
    assert broker.bytes_of("limited") == len(UPLOAD)
    client.delete(f"/models/{uploaded['id']}", headers=shown(LIMITED))
    assert broker.bytes_of("limited") == broker.bytes_of("free") == 0
