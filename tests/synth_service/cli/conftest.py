"""The command line over a real API process: what it prints and how it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shared.storage import Storage
from synth_service.cli import app
from tests.conftest import free_port
from tests.synth_service.api_process import serving

JOB = """\
name: digits
teacher: {arch: resnet20, num_classes: 10, checkpoint: teachers/digits.safetensors}
student: {arch: resnet8}
synthesis: {num_images: 8, batch_size: 4}
distillation: {steps: 10, warmup_batches: 0, final_learning_rate: 2e-4}
"""


@pytest.fixture(scope="package")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The storage of the API process that all tests of this package share. Each has jobs of its own."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    storage.put_bytes(b"weights", "teachers/digits.safetensors")
    return storage


@pytest.fixture(scope="package")
def service(redis_server: str, storage: Storage) -> Iterator[str]:
    with serving(redis_server, storage.root, free_port()) as url:
        yield url


@pytest.fixture
def url(service: str, redis_url: str) -> str:
    """The API over a server that holds nothing."""
    return service


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def dfkd(
    *arguments: str, url: str = "http://127.0.0.1:1", stdin: str | None = None, env: dict[str, str] | None = None
) -> Result:
    variables = {"DFKD_URL": url, "COLUMNS": "200", **(env or {})}
    return CliRunner().invoke(app, list(arguments), env=variables, input=stdin)
