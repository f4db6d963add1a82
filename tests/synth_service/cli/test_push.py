"""Pushing what a job has made to a stand-in of the Hugging Face hub."""

import json
import os
import subprocess
import sys

import pytest

from shared.broker import Broker
from shared.storage import Storage
from tests.hub import Hub, hub
from tests.synth_service.api.conftest import complete
from tests.synth_service.cli.conftest import dfkd

__all__ = ["hub"]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
"""Of huggingface_hub's own upload."""


@pytest.fixture
def job_id(url: str, job_file: str, broker: Broker, storage: Storage) -> str:
    """A job that has ended."""
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    complete(broker, storage)
    for name in ("student.safetensors", "grid.png"):
        storage.put_bytes(name.encode(), f"jobs/{job_id}/{name}")
    return job_id


@pytest.mark.parametrize("named", ["last", "digits", "id"])
def test_push_prints_where_the_dataset_is(hub: Hub, url: str, job_id: str, named: str) -> None:
    result = dfkd("push", job_id if named == "id" else named, "me/digits", url=url)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{hub.url}/datasets/me/digits\n"
    assert "uploading 5 files" in result.stderr
    names = set(hub.repositories["dataset", "me/digits"].files())
    assert names == {f"shards/{job_id}-00-00000{n}-01.tar" for n in (0, 1)} | {"index.json", "README.md", "grid.png"}


def test_the_program_itself_pushes_the_student(hub: Hub, url: str, job_id: str) -> None:
    """With nothing of this process but its environment: token and endpoint are those that huggingface_hub reads."""
    options = ["--student", "--private", "--revision", "first", "--message", "As it was", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "synth_service.cli", "push", job_id, "me/small", *options],
        env={**os.environ, "DFKD_URL": url, "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["model", "me/small"]
    answer = json.loads(done.stdout)
    assert answer == {
        "url": f"{hub.url}/me/small/tree/first",
        "commit": repository.branches["first"][-1].sha,
        "files": ["README.md", "student.safetensors"],
    }
    assert "it/s" not in done.stderr  # no bars but on a terminal
    assert repository.private
    assert repository.files("first")["student.safetensors"] == b"student.safetensors"
    assert repository.messages("first") == ["initial commit", "As it was"]


def test_nothing_to_push_and_no_such_job_are_refused_in_one_line(hub: Hub, url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    result = dfkd("push", job_id, "me/digits", url=url)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"{job_id} is queued; push it when it has ended" in result.stderr
    dfkd("cancel", job_id, url=url)
    assert dfkd("push", "nosuch", "me/digits", url=url).exit_code == 2
    assert hub.asked == []


def test_a_refusal_of_the_hub_is_one_line_with_the_remedy(hub: Hub, url: str, job_id: str) -> None:
    result = dfkd("push", job_id, "me/digits", url=url, env={"HF_TOKEN": "hf_old"})
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "set HF_TOKEN" in result.stderr
    assert "hf_old" not in result.stderr
    for name in ("them/digits", "digits", "me/[red]"):
        result = dfkd("push", job_id, name, url=url)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert name in result.stderr


def test_a_hub_that_is_away_fails_the_command(hub: Hub, url: str, job_id: str) -> None:
    hub.away_from = "POST /api/repos/create"
    result = dfkd("push", job_id, "me/digits", url=url)
    assert result.exit_code == 1
    assert "did not answer" in result.stderr
    assert "HF_ENDPOINT" in result.stderr


def test_neither_the_client_nor_the_list_of_commands_imports_the_package() -> None:
    code = (
        "import sys, synth_service.client, synth_service.cli.hub_commands\n"
        "print([name for name in ('huggingface_hub', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
