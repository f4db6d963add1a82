"""Two keys, each with its own jobs and models: whatever the route and the scope, nothing of one exists for the other.

The table is the OpenAPI document itself, with the pages of the dashboard, so a route that is added later is in it.
"""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shared.api_keys import new_api_key
from shared.broker import Broker
from shared.jobs import State
from shared.settings import Settings
from shared.storage import Storage, job_paths
from synth_service.api.app import create_app
from tests.attack.checkpoints import GOOD, archive
from tests.synth_service.api.keys import with_keys

ALICE = new_api_key("alice", ["scopes=read+submit"])
BOB = new_api_key("bob", ["scopes=read+submit"])
READER = new_api_key("reader", ["scopes=read"])
SUBMITTER = new_api_key("submitter", ["scopes=submit"])
ADMIN = new_api_key("operator", ["scopes=read+submit+admin"])
PAGES = ("/ui/jobs/{job_id}", "/ui/new?from={job_id}", "/ui/compare?jobs={job_id}")


def shown(made: tuple[str, str]) -> dict[str, str]:
    return {"X-API-Key": made[0]}


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    entries = ",".join(entry for _, entry in (ALICE, BOB, READER, SUBMITTER, ADMIN))
    return create_app(with_keys(settings, api_keys=entries, own_jobs_only=True))


@pytest.fixture
def of_alice(client: TestClient, written: dict[str, Any], storage: Storage) -> dict[str, str]:
    """What Alice has: values for the parameters of paths."""
    job = client.post("/jobs", json=written | {"name": "alices secret"}, headers=shown(ALICE)).json()["id"]
    model = client.post("/models", content=archive(GOOD), headers=shown(ALICE)).json()["id"]
    storage.put_bytes(b"student", job_paths.student(job))
    return {"job_id": job, "model_id": model, "name": f"{job}-00-000000-01.tar", "fingerprint": "0" * 16}


def table(app: FastAPI) -> list[tuple[str, str]]:
    """Every route about one job or model, and every page."""
    routes = [
        (method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if "{job_id}" in path or "{model_id}" in path
    ]
    return routes + [("GET", page) for page in PAGES]


def filled(path: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, f"give {path} a value"
    return path


def test_nothing_of_alice_exists_for_bob(client: TestClient, app: FastAPI, of_alice: dict[str, str]) -> None:
    rows = table(app)
    assert len(rows) > 12
    for method, path in rows:
        answer = client.request(method, filled(path, of_alice), headers=shown(BOB))
        assert answer.status_code == 404 or "alices secret" not in answer.text, (method, path, answer.status_code)
        if not path.startswith("/ui/"):
            missing = of_alice | {"job_id": "job-" + "0" * 20, "model_id": "model-" + "0" * 20}
            same = client.request(method, filled(path, missing), headers=shown(BOB))
            assert (answer.status_code, answer.json()["code"]) == (same.status_code, same.json()["code"]), path
    assert client.get(f"/jobs/{of_alice['job_id']}", headers=shown(ALICE)).json()["state"] == State.QUEUED
    assert client.get(f"/models/{of_alice['model_id']}", headers=shown(ALICE)).status_code == 200


@pytest.mark.parametrize("who", [BOB, READER], ids=["bob", "reader"])
def test_lists_hold_nothing_of_alice(client: TestClient, of_alice: dict[str, str], who: tuple[str, str]) -> None:
    for path in ("/jobs", "/jobs?name=secret", "/jobs?status=queued", "/models"):
        assert client.get(path, headers=shown(who)).json()["data"] == []
    for page in ("/ui/", "/ui/new", "/ui/compare", "/ui/workers"):
        text = client.get(page, headers=shown(who)).text
        assert "alices secret" not in text
        assert of_alice["job_id"] not in text
        assert of_alice["model_id"] not in text


def test_bob_cannot_name_what_alice_has(client: TestClient, written: dict[str, Any], of_alice: dict[str, str]) -> None:
    teacher = written["teacher"]
    for checkpoint in (of_alice["model_id"], f"models/{of_alice['model_id']}/x", job_paths.student(of_alice["job_id"])):
        job = written | {"teacher": teacher | {"checkpoint": checkpoint}}
        assert client.post("/jobs", json=job, headers=shown(BOB)).status_code == 422
        assert client.post("/jobs:validate", json=job, headers=shown(BOB)).status_code == 422


def test_a_reader_changes_nothing_and_a_submitter_reads_nothing(
    client: TestClient, app: FastAPI, of_alice: dict[str, str], broker: Broker
) -> None:
    for method, path in table(app):
        who = SUBMITTER if method in ("GET", "HEAD") else READER
        answer = client.request(method, filled(path, of_alice), headers=shown(who))
        assert answer.status_code == 403, (method, path)
    assert broker.jobs.get(of_alice["job_id"]).state is State.QUEUED


def test_an_admin_sees_and_ends_everything(client: TestClient, app: FastAPI, of_alice: dict[str, str]) -> None:
    job = of_alice["job_id"]
    assert client.get(f"/jobs/{job}", headers=shown(ADMIN)).json()["name"] == "alices secret"
    assert [each["id"] for each in client.get("/jobs", headers=shown(ADMIN)).json()["data"]] == [job]
    assert client.post(f"/jobs/{job}/cancel", headers=shown(ADMIN)).status_code == 202
    assert client.delete(f"/jobs/{job}", headers=shown(ADMIN)).status_code == 204
    assert client.delete(f"/models/{of_alice['model_id']}", headers=shown(ADMIN)).status_code == 204
