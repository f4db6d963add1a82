"""Several partitions, with as many workers and with fewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.jobs import State
from shared.shards.format import read_shard
from shared.storage import job_paths
from tests.e2e.service import Service
from tests.e2e.test_resume import MODULES

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("workers", [1, 3])
def test_three_partitions_make_every_image_with_any_number_of_workers(
    service: Service, digits: dict[str, Any], workers: int
) -> None:
    digits["synthesis"] |= {"partitions": 3, "num_images": 400, "max_backlog": 2}
    for number in range(1, workers):
        service.start(f"synthesis-{number}", MODULES["synthesis"])

    record = service.wait_until_final(service.submit(digits))

    assert record.state is State.SUCCEEDED, record.error
    assert record.stages.synthesis is not None
    assert [partition.progress.done for partition in record.stages.synthesis.partitions] == [134, 133, 133]
    numbers: dict[int, list[int]] = {partition: [] for partition in range(3)}
    images = []
    for manifest in service.broker.shards.manifests(record.id):
        numbers[manifest.partition] += range(manifest.first_image, manifest.first_image + manifest.images)
        path = service.storage.local_path(f"{job_paths.shards(record.id)}/{manifest.name}")
        assert path is not None
        images.append(read_shard(path, manifest).images)
    assert numbers == {0: list(range(134)), 1: list(range(133)), 2: list(range(133))}
    everything = np.concatenate(images).reshape(400, -1)
    assert len(np.unique(everything, axis=0)) == 400  # each partition has randomness of its own
