"""One record that nobody can read hides nothing else, and can be deleted by whoever owns it."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.broker import Broker, keys
from shared.settings import Settings
from synth_service.api.app import create_app
from tests.attack.checkpoints import GOOD, archive, mapping, pickled, tensor
from tests.synth_service.api.keys import bearer, with_keys
from tests.synth_service.api.test_problems import problem


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(with_keys(settings, own_jobs_only=True))


def upload(client: TestClient, name: str) -> str:
    answer = client.post("/models", content=archive(GOOD), headers=bearer(name))
    assert answer.status_code == 201
    return str(answer.json()["id"])


def test_of_a_model(client: TestClient, broker: Broker) -> None:
    damaged, whole = upload(client, "alice"), upload(client, "alice")
    broker.redis.hset(keys.model(damaged), "record", '{"id": "\\ud800"')
    listed = client.get("/models", headers=bearer("alice"))
    assert [each["id"] for each in listed.json()["data"]] == [whole]
    problem(client.delete(f"/models/{damaged}", headers=bearer("bob")), 404, "model_not_found")
    assert client.delete(f"/models/{damaged}", headers=bearer("alice")).status_code == 204
    problem(client.delete(f"/models/{damaged}", headers=bearer("alice")), 404, "model_not_found")


@pytest.mark.parametrize("field", ["spec", "metadata", "created_at", "state"])
def test_of_a_job(client: TestClient, broker: Broker, written: dict[str, Any], field: str) -> None:
    damaged, whole = (client.post("/jobs", json=written, headers=bearer("alice")).json()["id"] for _ in range(2))
    assert client.post(f"/jobs/{damaged}/cancel", headers=bearer("alice")).status_code == 202
    state = broker.redis.hget(keys.job(damaged), "state")
    broker.redis.hset(keys.job(damaged), field, "{")
    listed = client.get("/jobs", headers=bearer("alice"))
    assert [each["id"] for each in listed.json()["data"]] == [whole]
    assert "digits" in client.get("/ui/", headers=bearer("alice")).text
    if field == "state":  # which decides whether a job may be deleted
        broker.redis.hset(keys.job(damaged), field, str(state))
    problem(client.delete(f"/jobs/{damaged}", headers=bearer("bob")), 404, "job_not_found")
    assert client.delete(f"/jobs/{damaged}", headers=bearer("alice")).status_code == 204


def test_a_model_of_thousands_of_tensors_takes_little_memory_of_the_server(client: TestClient, broker: Broker) -> None:
    names = {f"{n:04d}" + "x" * 450: tensor(1) for n in range(3_000)}
    answer = client.post("/models", content=archive(pickled(mapping(names))), headers=bearer("alice"))
    assert answer.json()["tensor_count"] == 3_000
    shown = client.get(f"/models/{answer.json()['id']}", headers=bearer("alice")).json()["tensors"]
    assert 1_000 < len(shown) < 3_000
    assert int(broker.redis.memory_usage(keys.model(answer.json()["id"])) or 0) < 2_000_000
