import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.storage import Storage
from tests.synth_service.api.test_problems import problem


def test_a_valid_job_comes_back_resolved_with_its_estimate_and_is_not_stored(
    client: TestClient, broker: Broker, storage: Storage, written: dict[str, Any]
) -> None:
    before = storage.list()
    response = client.post("/jobs:validate", json=written)
    assert response.status_code == 200
    answer = response.json()
    assert answer["estimate"] | {"bytes": 0} == {
        "images": 8,
        "rounds": 2,
        "inversion_steps": 10,
        "shards": 2,
        "bytes": 0,
        "kd_steps": 10,
        "kd_images": 2560,
        "pool_bytes": 8 * 3 * 32 * 32,
        "workers": 1,
    }
    assert list(broker.redis.scan_iter()) == []
    assert storage.list() == before
    assert client.post("/jobs", json=written).json()["spec"] == answer["spec"]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"seed": -1}, "invalid_request", "seed"),
        ({"synthesis": {"num_images": 0}}, "invalid_request", "synthesis.num_images"),
        ({"student": None}, "invalid_request", "student"),
        ({"evaluation": {"shards": "nowhere.tar"}}, "not_found_in_storage", "evaluation.shards"),
    ],
)
def test_it_refuses_what_posting_a_job_refuses_in_the_same_words(
    client: TestClient, written: dict[str, Any], change: dict[str, Any], code: str, field: str
) -> None:
    refused = client.post("/jobs:validate", json=written | change)
    problem(refused, 422, code)
    assert refused.json()["errors"][0]["field"] == field
    assert refused.json() == client.post("/jobs", json=written | change).json()


def test_it_answers_while_somebody_types(client: TestClient, written: dict[str, Any]) -> None:
    client.post("/jobs:validate", json=written)
    started = time.process_time()
    for _ in range(20):
        assert client.post("/jobs:validate", json=written).status_code == 200
    assert (time.process_time() - started) / 20 < 0.1
