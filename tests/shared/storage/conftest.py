"""What tests of the storage share."""

from pathlib import Path

import pytest

from shared.storage import Storage
from tests.s3 import BUCKET


@pytest.fixture
def store(s3_server: str, tmp_path: Path) -> Storage:
    """A storage of its own in S3, past whatever proxy stands before the server."""
    return Storage(f"s3://{BUCKET}/{tmp_path.name}")
