import io
import tarfile
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.settings import Settings
from shared.shards.previews import Strip, Tile, encode_strip
from shared.storage import Storage, job_paths
from synth_service.api.app import create_app
from tests.conftest import free_port
from tests.s3 import BUCKET, moto_server
from tests.synth_service.api.conftest import claim, complete
from tests.synth_service.api.routes.test_models import memory_of_api
from tests.synth_service.api.test_problems import problem
from tests.synth_service.api_process import serving


def fill(storage: Storage, job: JobRecord) -> None:
    """What else a job leaves, outputs and other files."""
    storage.put_bytes(b"weights" * 1000, job_paths.student(job.id))
    storage.put_bytes(b"{}", job_paths.metrics(job.id))
    storage.put_bytes(b"# Card", f"{job_paths.folder(job.id)}/README.md")
    storage.put_bytes(b"state", f"{job_paths.work(job.id)}/state.pt")
    storage.put_bytes(b"orphan", f"{job_paths.shards(job.id)}/orphan.tar")
    strip = encode_strip(Strip(1, 1, 1, (Tile(0, b"0"),)))
    storage.put_bytes(strip, job_paths.preview(job.id, 0, 1, 1))


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def expected(broker: Broker, storage: Storage, job: JobRecord) -> dict[str, bytes]:
    names = [job_paths.student(job.id), job_paths.metrics(job.id), f"{job_paths.folder(job.id)}/README.md"]
    for manifest in broker.shards.manifests(job.id):
        names += [f"{job_paths.shards(job.id)}/{name}" for name in (manifest.name, manifest.sidecar_name)]
    return {name.removeprefix("jobs/"): storage.read_bytes(name) for name in names}


def test_an_archive_holds_the_outputs_of_a_finished_job_and_nothing_else(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    problem(client.get(f"/jobs/{job.id}/archive"), 409, "job_unfinished")
    complete(broker, storage)
    fill(storage, job)
    response = client.get(f"/jobs/{job.id}/archive")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-tar")
    assert int(response.headers["content-length"]) == len(response.content)
    assert f'filename="{job.id}.tar"' in response.headers["content-disposition"]
    assert contents(response.content) == expected(broker, storage, job)
    assert client.get(f"/jobs/{job.id}/archive").content == response.content


def test_an_archive_that_the_client_has_is_304(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    complete(broker, storage)
    etag = client.get(f"/jobs/{job.id}/archive").headers["etag"]
    assert client.get(f"/jobs/{job.id}/archive", headers={"If-None-Match": etag}).status_code == 304
    storage.put_bytes(b"more", job_paths.student(job.id))
    assert client.get(f"/jobs/{job.id}/archive", headers={"If-None-Match": etag}).status_code == 200


def test_a_job_that_left_nothing_has_no_archive(client: TestClient, job: JobRecord) -> None:
    client.post(f"/jobs/{job.id}/cancel")
    problem(client.get(f"/jobs/{job.id}/archive"), 404, "archive_empty")


def test_a_file_that_shrinks_on_the_way_ends_the_download(
    client: TestClient, broker: Broker, storage: Storage, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(broker, storage)
    whole = storage.sizes

    def one_byte_more(prefix: str = "") -> dict[str, int]:
        return {name: size + 1 for name, size in whole(prefix).items()}

    monkeypatch.setattr(client.app.state.storage, "sizes", one_byte_more)  # type: ignore[attr-defined]
    with pytest.raises(EOFError):
        client.get(f"/jobs/{job.id}/archive")


def test_the_same_from_object_storage(
    redis_url: str, broker: Broker, job: JobRecord, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with moto_server(tmp_path_factory.mktemp("moto")):
        storage = Storage(f"s3://{BUCKET}/archive")
        complete(broker, storage)
        fill(storage, job)
        settings = Settings(redis_url=redis_url, storage=storage.root, allowed_hosts=("testserver",))
        with TestClient(create_app(settings)) as client:
            response = client.get(f"/jobs/{job.id}/archive")
        assert int(response.headers["content-length"]) == len(response.content)
        assert contents(response.content) == expected(broker, storage, job)


def test_a_large_archive_and_a_large_file_take_little_memory(
    redis_url: str, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    broker.jobs.cancel(job.id)
    broker.leases.release(attempt, "job stopped")
    path = storage.local_path(job_paths.student(job.id))
    assert path is not None
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(300 * 1024 * 1024)
    with serving(redis_url, storage.root, free_port()) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.get(f"/jobs/{job.id}")
        before = memory_of_api("VmRSS")
        for output in ("archive", "student"):
            with client.stream("GET", f"/jobs/{job.id}/{output}") as response:
                received = sum(len(chunk) for chunk in response.iter_raw())
            assert received == int(response.headers["content-length"]) >= 300 * 1024 * 1024
        assert memory_of_api("VmHWM") - before < 20
    assert Path(path).exists()
