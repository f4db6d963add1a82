"""HEAD is GET without a body."""

import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.storage import Storage
from tests.synth_service.api.conftest import announce, claim


@pytest.mark.parametrize("path", ["/", "/ui/", "/healthz", "/readyz", "/jobs", "/presets", "/openapi.json", "/metrics"])
def test_head_answers_as_get_does_without_the_body(client: TestClient, path: str) -> None:
    asked, got = client.head(path), client.get(path)
    assert (asked.status_code, asked.headers.get("content-type")) == (200, got.headers["content-type"])
    assert asked.content == b""


def test_a_shard_tells_its_size_and_hash(client: TestClient, broker: Broker, storage: Storage, job: JobRecord) -> None:
    manifest = announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    answer = client.head(f"/jobs/{job.id}/shards/{manifest.name}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(manifest.bytes)
    assert answer.headers["etag"] == f'"{manifest.sha256}"'


def test_what_is_not_there_is_not_there_for_head_either(client: TestClient, job: JobRecord) -> None:
    assert client.head("/jobs/job-00000000000000000000").status_code == 404
    refused = client.head(f"/jobs/{job.id}/cancel")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.put("/jobs").headers["allow"] == "GET, HEAD, POST"


def test_the_head_of_a_stream_ends_at_once(client: TestClient, job: JobRecord) -> None:
    answer = client.head(f"/jobs/{job.id}/events", headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == b""
