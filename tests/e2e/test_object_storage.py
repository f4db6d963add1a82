"""A whole job with nothing but object storage between its processes, and distillers that cache what they read."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from shared.jobs import State
from shared.storage import Storage, job_paths
from tests.e2e.service import Service
from tests.s3 import BUCKET, moto_server

pytestmark = pytest.mark.e2e

CACHE_BYTES = 1_000_000
"""Room for five of the eight shards."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def service(redis_server: str, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Service]:
    """The service of the other tests, but on S3."""
    folder = tmp_path_factory.mktemp("service")
    with moto_server(tmp_path_factory.mktemp("moto")):
        environment = {"DFKD_CACHE_FOLDER": str(cache), "DFKD_CACHE_BYTES": str(CACHE_BYTES)}
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
