import io
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord, Role
from shared.shards.previews import Strip, Tile, encode_strip
from shared.specs import JobSpec
from shared.storage import Storage, job_paths
from shared.worker.retention import delete_job
from tests.synth_service.api.conftest import claim
from tests.synth_service.api.test_problems import problem


def put(storage: Storage, job: JobRecord, partition: int, attempt: int, images: int, *targets: int) -> None:
    """A strip whose tiles have the number of images as their shade of gray."""
    tiles = tuple(Tile(target, bytes([images]) * 48 * 48) for target in targets)
    storage.put_bytes(encode_strip(Strip(48, 48, 1, tiles)), job_paths.preview(job.id, partition, attempt, images))


def shades(content: bytes) -> list[int]:
    """The tiles' shades of gray, in order, the white of the background left out."""
    picture = Image.open(io.BytesIO(content))
    tiles = [
        picture.getpixel((left, top)) for top in range(2, picture.height, 50) for left in range(2, picture.width, 50)
    ]
    return [int(str(shade)) for shade in tiles if shade != 255]


def test_the_newest_images_of_all_partitions_are_one_picture(
    client: TestClient, storage: Storage, job: JobRecord
) -> None:
    problem(client.get(f"/jobs/{job.id}/preview.png"), 404, "preview_not_ready")
    put(storage, job, 0, 1, 10, 0, 1)
    put(storage, job, 1, 1, 20, 1, 1)
    response = client.get(f"/jobs/{job.id}/preview.png")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert shades(response.content) == [20, 10, 20, 10]


def test_only_the_class_that_was_asked_for(client: TestClient, storage: Storage, job: JobRecord) -> None:
    put(storage, job, 0, 1, 10, 0, 1, 0)
    assert len(shades(client.get(f"/jobs/{job.id}/preview.png?class=0").content)) == 2
    problem(client.get(f"/jobs/{job.id}/preview.png?class=2"), 404, "preview_not_ready")
    assert client.get(f"/jobs/{job.id}/preview.png?class=-1").status_code == 422


def test_what_a_superseded_worker_writes_is_not_shown(client: TestClient, storage: Storage, job: JobRecord) -> None:
    put(storage, job, 0, 2, 10, 0)
    put(storage, job, 0, 1, 99, 0, 0)
    assert shades(client.get(f"/jobs/{job.id}/preview.png").content) == [10]


def test_an_unchanged_picture_is_304_until_there_are_new_images(
    client: TestClient, storage: Storage, job: JobRecord
) -> None:
    put(storage, job, 0, 1, 10, 0)
    etag = client.get(f"/jobs/{job.id}/preview.png").headers["etag"]
    unchanged = client.get(f"/jobs/{job.id}/preview.png", headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert client.get(f"/jobs/{job.id}/preview.png?class=0", headers={"If-None-Match": etag}).status_code == 200
    put(storage, job, 0, 1, 20, 0)
    assert client.get(f"/jobs/{job.id}/preview.png", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("partitions", [100])
def test_of_many_partitions_some_are_shown(
    client: TestClient, storage: Storage, job: JobRecord, partitions: int
) -> None:
    for partition in range(partitions):
        put(storage, job, partition, 1, partition + 1, 0)
    assert shades(client.get(f"/jobs/{job.id}/preview.png").content) == list(range(100, 92, -1))


def test_a_job_over_an_existing_dataset_has_none_and_says_so(
    client: TestClient, broker: Broker, written: dict[str, Any]
) -> None:
    changes = {"synthesis": None, "shards": "data/a.tar", "distillation": {"steps": 5}}
    made = broker.jobs.create(JobSpec.model_validate(written | changes))
    problem(client.get(f"/jobs/{made.id}/preview.png"), 404, "job_without_synthesis")


def test_previews_go_with_their_job(broker: Broker, storage: Storage, job: JobRecord) -> None:
    put(storage, job, 0, 1, 10, 0)
    attempt = claim(broker, Role.SYNTHESIS)
    broker.jobs.cancel(job.id)
    broker.leases.release(attempt, "job stopped")
    delete_job(broker, storage, job.id)
    assert storage.list("jobs") == []
