"""What the documentation tells people to type is typed: every ``bash`` and ``python`` block, in order, for real.

The blocks of one document are one shell session, in a folder that looks like the repository's root beside a running
``dfkd up``. Blocks that need what a test cannot have (a container engine, a cluster, the whole of ``make``) are
marked ``sh``; of these only the syntax is checked, and ``docker/smoke.sh`` and ``.ci/run`` run them. Jobs shown as
``yaml`` must be valid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from shared.networks.building import build_network
from shared.specs import InputSpec, JobSpec, StudentSpec
from shared.storage import Storage
from tests.e2e.service import REPOSITORY, Service

DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
    REPOSITORY / "benchmarks" / "README.md",
]
SESSION_SECONDS = 240


def fences(document: Path) -> list[Token]:
    return [token for token in MarkdownIt().parse(document.read_text(encoding="utf-8")) if token.type == "fence"]


def name_of(document: Path) -> str:
    return str(document.relative_to(REPOSITORY))


def session(document: Path) -> str:
    """All that a reader is told to type, as one shell script."""
    script = []
    for token in fences(document):
        if token.info == "bash":
            script.append(token.content)
        elif token.info == "python":
            script.append(f"python -W error::SyntaxWarning - <<'END_OF_PYTHON'\n{token.content}END_OF_PYTHON\n")
    return "".join(script)


WITH_SESSION = [document for document in DOCUMENTS if session(document)]


@pytest.fixture(scope="module")
def service(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("documented")
    service = Service(redis_server, Storage(str(folder / "dfkd-data")), folder / "logs", {})
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


@pytest.fixture
def folder(service: Service, tmp_path: Path) -> Iterator[Path]:
    """Where a reader is: the examples, the service's storage, and a network of the reader's own."""
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / "dfkd-data").symlink_to(service.storage.root)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for program in ("dfkd", "python"):
        (tmp_path / ".venv" / "bin" / program).symlink_to(Path(sys.executable).parent / program)
    shutil.copy(REPOSITORY / "examples" / "digits" / "teacher.safetensors", tmp_path / "my-teacher.safetensors")
    teacher = build_network(StudentSpec(arch="resnet8"), num_classes=10, input=InputSpec())
    torch.save(teacher.state_dict(), tmp_path / "my-teacher.pt")
    yield tmp_path
    # A document may leave a long job behind, which the next one would wait for.
    for job in service.client.get("/jobs").json()["data"]:
        if job["state"] in ("queued", "running"):
            service.client.post(f"/jobs/{job['id']}/cancel").raise_for_status()


@pytest.mark.e2e
@pytest.mark.timeout(SESSION_SECONDS + 60)
@pytest.mark.parametrize("document", WITH_SESSION, ids=name_of)
def test_every_example_works_as_it_is_written(document: Path, service: Service, folder: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DFKD_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DFKD_URL": str(service.client.base_url),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", session(document)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=SESSION_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_shown_commands_are_valid_shell_and_shown_jobs_are_valid(document: Path) -> None:
    for token in fences(document):
        if token.info == "sh":
            checked = subprocess.run(
                ["bash", "-n", "-c", token.content], capture_output=True, text=True, timeout=10, check=False
            )
            assert checked.returncode == 0, f"{token.content}\n{checked.stderr}"
        if token.info == "yaml":
            content = yaml.safe_load(token.content)
            if isinstance(content, dict) and "teacher" in content:
                JobSpec.model_validate(content)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_says_what_it_is(document: Path) -> None:
    unnamed = [token.content for token in fences(document) if not token.info]
    assert unnamed == [], "name the language: bash and python are run, sh is checked, text is output"
