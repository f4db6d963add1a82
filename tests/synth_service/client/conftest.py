"""A real API process for the client, with a storage and an empty server."""

from collections.abc import Iterator
from typing import Any

import pytest

from shared.storage import Storage
from synth_service.client import Client
from tests.conftest import free_port
from tests.synth_service.api_process import serving

CHECKPOINT = "teachers/digits.safetensors"


@pytest.fixture(scope="package")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The storage of the API process that all tests of this package share. Each has jobs of its own."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    storage.put_bytes(b"weights", CHECKPOINT)
    return storage


@pytest.fixture(scope="package")
def service(redis_server: str, storage: Storage) -> Iterator[str]:
    with serving(redis_server, storage.root, free_port()) as url:
        yield url


@pytest.fixture
def client(service: str, redis_url: str) -> Iterator[Client]:
    """A client of the API over a server that holds nothing. It never pauses."""
    with Client(service, sleep=lambda _: None) as client:
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
