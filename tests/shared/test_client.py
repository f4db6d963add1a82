"""The client against a real API process and, where the API is to misbehave, against a server of a few lines."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.broker import Broker
from shared.client import ApiError, Client, DamagedDownload, ServerUnreachable
from shared.jobs import Role, State
from shared.storage import Storage
from tests.conftest import free_port
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.api_process import serving

CHECKPOINT = "teachers/digits.safetensors"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The storage of the API process that all tests of this module share. Each has jobs of its own."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    storage.put_bytes(b"weights", CHECKPOINT)
    return storage


@pytest.fixture(scope="module")
def service(redis_server: str, storage: Storage) -> Iterator[str]:
    with serving(redis_server, storage.root, free_port()) as url:
        yield url


@pytest.fixture
def client(service: str, redis_url: str) -> Iterator[Client]:
    """A client of the API over a server that holds nothing."""
    with Client(service) as client:
        yield client


def job(**changes: Any) -> dict[str, Any]:
    return {
        "name": "digits",
        "teacher": {"arch": "resnet20", "num_classes": 10, "checkpoint": CHECKPOINT},
        "student": {"arch": "resnet8"},
        "synthesis": {"num_images": 8, "batch_size": 4},
        "distillation": {"steps": 10, "warmup_batches": 0},
        **changes,
    }


def test_a_job_from_start_to_cancellation(client: Client) -> None:
    first, second = client.submit(job(name="one")), client.submit(job(name="two"))
    assert client.job(first.id).name == "one"
    page = client.jobs(limit=1)
    assert [each.id for each in page.data] == [second.id]
    assert page.has_more
    assert [each.id for each in client.jobs(after=second.id).data] == [first.id]
    assert client.cancel(first.id).state is State.CANCELLED
    assert [each.id for each in client.jobs(status="cancelled").data] == [first.id]
    with pytest.raises(ApiError) as refusal:
        client.cancel(first.id)
    assert (refusal.value.status, refusal.value.code) == (409, "job_finished")


def test_an_unchanged_job_is_polled_without_its_body(client: Client, broker: Broker) -> None:
    job_id = client.submit(job()).id
    first = client.poll(job_id)
    second = client.poll(job_id)
    assert second.job is first.job  # 304: what was there is used again
    assert first.retry_after_seconds == second.retry_after_seconds == 1.0
    claim(broker, Role.SYNTHESIS)
    assert client.poll(job_id).job.state is State.RUNNING


def test_a_refusal_names_every_field(client: Client) -> None:
    with pytest.raises(ApiError) as refusal:
        client.submit(job(teacher={"arch": "no-such-net", "num_classes": 1, "checkpoint": CHECKPOINT}))
    assert refusal.value.status == 422
    assert {each.field for each in refusal.value.errors} == {"teacher.arch", "teacher.num_classes"}


@pytest.mark.parametrize("job_id", ["job-0", "../workers", "a/b", "?", ""])
def test_an_unknown_job_is_an_error_whatever_its_id_looks_like(client: Client, job_id: str) -> None:
    with pytest.raises(ApiError) as refusal:
        client.job(job_id) if job_id else client.cancel(job_id)
    assert refusal.value.status in (404, 405, 422)


def test_shards_are_listed_and_downloaded_whole(
    client: Client, broker: Broker, storage: Storage, tmp_path: Path
) -> None:
    job_id = client.submit(job()).id
    complete(broker, storage)
    manifests = client.shards(job_id)
    assert [manifest.index for manifest in manifests] == [0, 1]
    client.download_shard(manifests[0], tmp_path / "new" / "shard.tar")
    assert sha256((tmp_path / "new" / "shard.tar").read_bytes()).hexdigest() == manifests[0].sha256


def test_a_damaged_download_leaves_nothing(client: Client, broker: Broker, storage: Storage, tmp_path: Path) -> None:
    client.submit(job())
    manifest = announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    storage.put_bytes(b"x" * manifest.bytes, f"jobs/{manifest.job}/shards/{manifest.name}")
    with pytest.raises(DamagedDownload, match="announced was"):
        client.download_shard(manifest, tmp_path / "into" / manifest.name)
    assert list((tmp_path / "into").iterdir()) == []


def test_nobody_there_is_unreachable() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServerUnreachable, match="no answer from"):
        client.job("job-0")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "", "http://host:port"])
def test_a_wrong_address_is_said_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError, match="server address"):
        Client(url)


@contextmanager
def answering(statuses: list[int], seen: list[str | None]) -> Iterator[str]:
    """A server that gives these statuses in turn and notes the Idempotency-Key of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Idempotency-Key"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_submission_is_tried_again_under_the_same_key() -> None:
    seen: list[str | None] = []
    with answering([503, 502, 500], seen) as url, Client(url) as client, pytest.raises(ApiError) as refusal:
        client.submit(job())
    assert refusal.value.status == 500
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0]
