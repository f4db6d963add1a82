"""What a job has made, on a stand-in of the Hugging Face hub: exactly its files, in one commit, or nothing."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub import DatasetCard, ModelCard

from shared import extras
from shared.broker import Broker
from shared.extras import MissingExtra
from shared.jobs import Role
from shared.storage import Storage
from synth_service.client import AsyncClient, Client, DamagedDownload, HubError, Job
from tests.hub import Hub, hub
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.client.conftest import job
from tests.synth_service.client.scripted_server import Answer, ScriptedServer

__all__ = ["hub"]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
"""Of huggingface_hub's own upload."""

STUDENT = bytes(range(256)) * 100


@pytest.fixture
def finished(client: Client, broker: Broker, storage: Storage) -> Job:
    """A job that has made two shards, a picture grid, and a student with one export of the two it was asked for."""
    distillation = {"steps": 10, "warmup_batches": 0, "export": ["torch-export", "onnx"]}
    made = client.jobs.create(job(distillation=distillation))
    complete(broker, storage, result={"images": 8, "student_sha256": sha256(STUDENT).hexdigest()})
    for name, content in {"student.safetensors": STUDENT, "student.pt2": b"program", "grid.png": b"picture"}.items():
        storage.put_bytes(content, f"jobs/{made.id}/{name}")
    return made.refresh()


def dataset_files(storage: Storage, job_id: str) -> dict[str, bytes]:
    """What of the job's folder goes up, as it lies there; index and card are of the client's making here."""
    prefix = f"jobs/{job_id}/"
    names = [name for name in storage.list(f"{prefix}shards") if name.endswith(".tar")] + [f"{prefix}grid.png"]
    return {name.removeprefix(prefix): storage.read_bytes(name) for name in names}


def test_a_dataset_goes_up_as_it_is_in_one_commit(hub: Hub, finished: Job, storage: Storage, tmp_path: Path) -> None:
    pushed = finished.push_to_hub("me/digits")
    repository = hub.repositories["dataset", "me/digits"]
    finished.download_dataset(tmp_path)
    expected = dataset_files(storage, finished.id)
    expected |= {name: (tmp_path / name).read_bytes() for name in ("index.json", "README.md")}
    assert repository.files() == expected
    assert len(expected) == 5
    assert repository.messages() == ["initial commit", f"Push the dataset of {finished.id}"]
    assert not repository.private
    assert pushed.url == f"{hub.url}/datasets/me/digits"
    assert pushed.commit == repository.branches["main"][-1].sha
    assert set(pushed.files) == set(expected)
    assert hub.validated == ["dataset"]


def test_a_student_goes_up_with_its_exports_and_a_card(hub: Hub, finished: Job) -> None:
    pushed = finished.push_to_hub("me/digits-resnet8", student=True, private=True, message="Say what it is")
    repository = hub.repositories["model", "me/digits-resnet8"]
    files = repository.files()
    card = ModelCard(files.pop("README.md").decode())
    assert files == {"student.safetensors": STUDENT, "student.pt2": b"program"}
    assert repository.messages() == ["initial commit", "Say what it is"]
    assert repository.private
    assert pushed.url == f"{hub.url}/me/digits-resnet8"
    assert card.data.library_name == "fast-dfkd"
    assert card.data.pipeline_tag == "image-classification"
    assert hub.validated == ["model"]


def test_the_card_of_a_dataset_is_what_the_hub_reads(hub: Hub, finished: Job) -> None:
    finished.push_to_hub("me/digits")
    card = DatasetCard(hub.repositories["dataset", "me/digits"].files()["README.md"].decode())
    assert card.data.task_categories == ["image-classification"]
    assert "data-free-knowledge-distillation" in card.data.tags


def test_a_second_push_replaces_the_first_and_leaves_what_is_not_of_a_push(
    hub: Hub, client: Client, broker: Broker, storage: Storage, finished: Job
) -> None:
    repository = hub.add("dataset", "me/digits", LICENSE=b"mine", README__md=b"old")
    finished.push_to_hub("me/digits")
    other = client.jobs.create(job())
    complete(broker, storage)
    other.refresh().push_to_hub("me/digits")
    files = repository.files()
    assert files["LICENSE"] == b"mine"
    assert {name for name in files if name.startswith("shards/")} == {
        f"shards/{manifest.name}" for manifest in client.jobs.shards(other.id)
    }
    assert "grid.png" not in files  # of the first alone
    assert len(repository.messages()) == 3

    sent = len([line for line in hub.asked if line.startswith("PUT")])
    assert other.push_to_hub("me/digits").commit == repository.branches["main"][-1].sha
    assert len(repository.messages()) == 3
    assert len([line for line in hub.asked if line.startswith("PUT")]) == sent


def test_a_push_goes_to_a_branch_which_is_made_if_it_is_missing(hub: Hub, finished: Job) -> None:
    for _ in range(2):
        pushed = finished.push_to_hub("me/digits", student=True, revision="runs/first")
    repository = hub.repositories["model", "me/digits"]
    assert repository.files() == {}
    assert "student.safetensors" in repository.files("runs/first")
    assert pushed.url == f"{hub.url}/me/digits/tree/runs%2Ffirst"


@pytest.mark.parametrize("name", ["digits", "me/digits/more", "me/what?", "me/..", ""])
def test_a_name_that_no_repository_can_have_is_refused_at_once(hub: Hub, finished: Job, name: str) -> None:
    with pytest.raises(HubError, match="name") as caught:
        finished.push_to_hub(name)
    assert caught.value.is_usage
    assert hub.asked == []


def test_an_unknown_token_is_refused_with_the_remedy(hub: Hub, finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(HubError, match=r"does not know your token .* set HF_TOKEN") as caught:
        finished.push_to_hub("me/digits")
    assert caught.value.is_usage
    assert "hf_old" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"who pushes to me/digits: set HF_TOKEN .* or run `hf auth login`"):
        finished.push_to_hub("me/digits")
    assert hub.repositories == {}


def test_somebody_elses_name_is_refused_before_anything_is_fetched(hub: Hub, finished: Job) -> None:
    with pytest.raises(HubError, match="may not write to them/digits, or there is no such owner") as caught:
        finished.push_to_hub("them/digits")
    assert caught.value.is_usage
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_is_no_hub_is_named(
    hub: Hub, service: str, finished: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", service)
    with pytest.raises(HubError, match=rf"finds no me/digits at {service} .*HF_ENDPOINT"):
        finished.push_to_hub("me/digits")
    with ScriptedServer([Answer(200, b"<html>")]).running() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        with pytest.raises(HubError, match="answers as no hub does"):
            finished.push_to_hub("me/digits")


def test_what_should_be_private_does_not_go_to_a_public_repository(hub: Hub, finished: Job) -> None:
    repository = hub.add("dataset", "me/digits")
    with pytest.raises(HubError, match="and public; make it private"):
        finished.push_to_hub("me/digits", private=True)
    assert repository.files() == {}


@pytest.mark.parametrize("request_line", ["PUT /lfs", "POST /api/datasets/me/digits/commit"])
def test_a_hub_that_goes_away_in_the_middle_leaves_no_commit(
    hub: Hub, finished: Job, monkeypatch: pytest.MonkeyPatch, request_line: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its five tries
    hub.away_from = request_line
    with pytest.raises(HubError, match=r"did not answer .* push again") as caught:
        finished.push_to_hub("me/digits")
    assert not caught.value.is_usage
    repository = hub.repositories["dataset", "me/digits"]
    assert repository.files() == {}
    hub.away_from = None
    finished.push_to_hub("me/digits")
    assert len(repository.messages()) == 2


def test_somebody_elses_push_in_between_is_not_overwritten(hub: Hub, finished: Job) -> None:
    repository = hub.add("dataset", "me/digits")
    reply = hub.reply

    def with_another(line: str, authorization: str | None, body: bytes) -> Any:
        if "/preupload/" in line:
            first = repository.branches["main"][0]
            repository.branches["main"].append(first._replace(sha="f" * 40, message="theirs"))
        return reply(line, authorization, body)

    hub.reply = with_another  # type: ignore[method-assign]
    with pytest.raises(HubError, match="changed by somebody else meanwhile"):
        finished.push_to_hub("me/digits")
    assert repository.messages() == ["initial commit", "theirs"]


def test_a_damaged_shard_is_not_pushed(hub: Hub, client: Client, storage: Storage, finished: Job) -> None:
    manifest = client.jobs.shards(finished.id)[0]
    storage.put_bytes(b"x" * manifest.bytes, f"jobs/{finished.id}/shards/{manifest.name}")
    with pytest.raises(DamagedDownload):
        finished.push_to_hub("me/digits")
    storage.put_bytes(b"x" * len(STUDENT), f"jobs/{finished.id}/student.safetensors")
    with pytest.raises(DamagedDownload):
        finished.push_to_hub("me/digits", student=True)
    assert [repository.files() for repository in hub.repositories.values()] == [{}, {}]


def test_a_job_that_has_not_ended_is_refused(hub: Hub, client: Client, broker: Broker, storage: Storage) -> None:
    made = client.jobs.create(job())
    announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    for student in (False, True):
        with pytest.raises(HubError, match=f"{made.id} is running; push it when it has ended: `dfkd watch"):
            made.push_to_hub("me/digits", student=student)
    made.cancel()
    assert hub.asked == []


def test_a_job_that_was_cancelled_in_the_middle_is_refused(hub: Hub, client: Client) -> None:
    made = client.jobs.create(job())
    made.cancel()
    with pytest.raises(HubError, match="has cancelled before its dataset was complete; resume it with `dfkd retry"):
        made.push_to_hub("me/digits")
    with pytest.raises(HubError, match="left no student; resume it"):
        made.push_to_hub("me/digits", student=True)
    assert hub.asked == []


def test_a_job_without_dataset_or_student_is_refused(hub: Hub, client: Client, storage: Storage) -> None:
    storage.put_bytes(b"shards", "made/0.tar")
    written = job(shards="made/0.tar", distillation={"steps": 10})
    del written["synthesis"]
    distilled = client.jobs.create(written)
    with pytest.raises(HubError, match=r"has made no dataset; push the job that made them, or .*--student"):
        distilled.push_to_hub("me/digits")
    written = job(distillation=None)
    del written["student"]
    only_images = client.jobs.create(written)
    with pytest.raises(HubError, match="has no student; push its dataset"):
        only_images.push_to_hub("me/digits", student=True)
    assert hub.asked == []


def test_without_the_package_the_extra_is_named(hub: Hub, finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = extras.installed_version
    monkeypatch.setattr(extras, "installed_version", lambda n: None if n == "huggingface_hub" else installed(n))
    with pytest.raises(MissingExtra, match=r"needs huggingface_hub; install with: pip install 'fast-dfkd\[hub\]'"):
        finished.push_to_hub("me/digits")


def test_an_event_loop_goes_on_while_files_go_up(hub: Hub, service: str, finished: Job) -> None:
    turns = 0

    async def push() -> None:
        nonlocal turns
        async with AsyncClient(service) as client, anyio.create_task_group() as others:

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += any(line.startswith("PUT") for line in hub.asked)
                    await anyio.sleep(0)

            others.start_soon(count)
            found = await client.jobs.get(finished.id)
            await found.push_to_hub("me/digits")
            others.cancel_scope.cancel()

    anyio.run(push)
    assert len(hub.repositories["dataset", "me/digits"].files()) == 5
    assert turns > 0
