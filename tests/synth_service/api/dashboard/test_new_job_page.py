"""The page of the form over the real application; what it does in a browser is in ``tests/browser``."""

from typing import Any

from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.storage import Storage


def page(client: TestClient, path: str = "/ui/new", status: int = 200) -> str:
    response = client.get(path, headers={"Accept": "text/html"})
    assert response.status_code == status
    return response.text


def test_the_form_offers_presets_and_architectures(client: TestClient) -> None:
    html = page(client)
    assert 'name="teacher.checkpoint"' in html
    assert '<option value="fast-10"' in html
    assert '<option value="resnet20">' in html
    assert '<option value="timm:">' in html
    assert "Start from the digits example" not in html


def test_the_form_starts_from_a_job(client: TestClient, job: JobRecord, written: dict[str, Any]) -> None:
    html = page(client, f"/ui/new?from={job.id}")
    assert f'value="{written["teacher"]["checkpoint"]}"' in html
    assert f'href="/ui/jobs/{job.id}"' in html


def test_an_unknown_job_is_not_found(client: TestClient, broker: Broker) -> None:
    page(client, "/ui/new?from=job-00000000000000000000", status=404)
    page(client, "/ui/new?from=nonsense", status=422)


def test_names_are_escaped(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    job_id = client.post("/jobs", json=written | {"name": '"><script>alert(1)</script>'}).json()["id"]
    html = page(client, f"/ui/new?from={job_id}")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_the_example_is_offered_where_its_files_are(client: TestClient, storage: Storage) -> None:
    assert "The example's files are not in the storage" in page(client, "/ui/new?example=digits")
    storage.put_bytes(b"weights", "digits/teacher.safetensors")
    assert "Start from the digits example" in page(client)
    html = page(client, "/ui/new?example=digits")
    assert 'value="digits/teacher.safetensors"' in html
    assert 'value="6400"' in html
