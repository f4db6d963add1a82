"""A whole job with nothing but object storage between its processes, and distillers that cache what they read."""

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from shared.jobs import State
from shared.storage import Storage, job_paths
from tests.chaos.proxy import Proxy
from tests.e2e.service import Service
from tests.s3 import BUCKET, moto_server
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

CACHE_BYTES = 1_000_000
"""Room for five of the eight shards."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A store that can be cut off from the service, and not from the test."""
    with moto_server(tmp_path_factory.mktemp("moto")) as address:
        proxy = Proxy(int(address.rpartition(":")[2]))
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def service(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory, cache: Path, object_store: Proxy
) -> Iterator[Service]:
    """The service of the other tests, but on S3."""
    folder = tmp_path_factory.mktemp("service")
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{object_store.port}",
        "DFKD_CACHE_FOLDER": str(cache),
        "DFKD_CACHE_BYTES": str(CACHE_BYTES),
    }
    service = Service(redis_server, Storage(f"s3://{BUCKET}/service"), folder / "logs", environment)
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


def test_a_job_and_one_that_distils_from_its_images_run_on_object_storage(
    service: Service, digits: dict[str, Any], cache: Path
) -> None:
    made = service.wait_until_final(service.submit(digits))
    assert made.state is State.SUCCEEDED, made.error
    folder = job_paths.shards(made.id)
    manifests = service.broker.shards.manifests(made.id)
    assert sum(manifest.images for manifest in manifests) == 512
    for manifest in manifests:
        assert sha256(service.storage.read_bytes(f"{folder}/{manifest.name}")).hexdigest() == manifest.sha256

    del digits["synthesis"], digits["distillation"]["warmup_batches"], digits["distillation"]["snapshot_every_steps"]
    digits["shards"] = f"{folder}/{made.id}-00-{{000000..000007}}-01.tar"
    read = service.wait_until_final(service.submit(digits))
    assert read.state is State.SUCCEEDED, read.error
    assert read.stages.distillation is not None
    assert read.stages.distillation.images_consumed == 512

    kept = [path for path in cache.iterdir() if path.stat().st_size]
    assert 0 < sum(path.stat().st_size for path in kept) <= CACHE_BYTES
    assert all(sha256(path.read_bytes()).hexdigest() == path.name[-64:] for path in kept)


def test_a_job_outlives_an_outage_of_its_storage_without_losing_an_attempt(
    service: Service, digits: dict[str, Any], object_store: Proxy
) -> None:
    digits["synthesis"] |= {"num_images": 1280, "max_backlog": 4}
    digits["distillation"] |= {"steps": 300}
    job_id = service.submit(digits)
    service.wait_for(job_id, lambda job: bool(job.stages.distillation and job.stages.distillation.progress.done > 20))
    object_store.cut()

    def is_held_up() -> bool:
        return any(event.type == "storage_unavailable" for event in service.events(job_id))

    wait_until(is_held_up, timeout=90)
    refused = service.client.post("/jobs", json=digits)
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
    assert service.client.get("/readyz").status_code == 503
    time.sleep(10)  # two leases, which are renewed all the while
    object_store.restore()

    job = service.wait_until_final(job_id)
    assert job.state is State.SUCCEEDED, job.error
    assert [stage.attempt for stage in (job.stages.synthesis, job.stages.distillation) if stage] == [1, 1]
    types = [event.type for event in service.events(job_id)]
    assert not {"shard_damaged", "checkpoint_lost", "attempt_failed", "attempt_lost"} & set(types)
    manifests = service.broker.shards.manifests(job_id)
    assert sum(manifest.images for manifest in manifests) == 1280
    names = service.storage.list(job_paths.shards(job_id))
    assert len([name for name in names if name.endswith(".tar")]) == len(manifests)
