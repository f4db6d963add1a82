"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from shared.storage import Storage
from tests.e2e.service import DIGITS, Service


@pytest.fixture(scope="module")
def service(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with one worker of each role, for all tests of a module."""
    folder = tmp_path_factory.mktemp("service")
    service = Service(
        redis_server,
        Storage(str(folder / "storage")),
        folder / "logs",
        {"DFKD_ALLOWED_FACTORIES": "tests.e2e.networks"},
    )
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


def digits_fields() -> dict[str, Any]:
    """The digits job, cut down to seconds: 8 batches of 64 images, 60 steps."""
    fields: dict[str, Any] = yaml.safe_load((DIGITS / "job.yaml").read_text())
    fields["synthesis"] |= {"num_images": 512, "batch_size": 64, "steps": 2, "preset": "fast-2", "generator_width": 16}
    fields["distillation"] |= {"steps": 60, "batch_size": 64, "warmup_batches": 2, "snapshot_every_steps": 10}
    fields["evaluation"] |= {"every_steps": 20}
    return fields


@pytest.fixture
def digits() -> dict[str, Any]:
    """The small digits job, for a test to change."""
    return digits_fields()
