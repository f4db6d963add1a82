"""Files and datasets come whole, or not at all, over connections that are cut and from servers that lie."""

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from shared.broker import Broker
from shared.jobs import Role
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec
from shared.storage import Storage
from synth_service.client import Client, DamagedDownload, Job, ServerUnreachable
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.client.conftest import job
from tests.synth_service.client.cutting_proxy import cutting
from tests.synth_service.client.scripted_server import Answer, ScriptedServer

STUDENT = bytes(range(256)) * 4000


@pytest.fixture
def finished(client: Client, broker: Broker, storage: Storage) -> Job:
    """A job that has made two shards, a student and what else there is."""
    made = client.jobs.create(job())
    complete(broker, storage)
    storage.put_bytes(STUDENT, f"jobs/{made.id}/student.safetensors")
    for name in ("grid.png", "index.json", "README.md", "metrics.json"):
        storage.put_bytes(name.encode(), f"jobs/{made.id}/{name}")
    return made.refresh()


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(storage: Storage, job_id: str) -> dict[str, bytes]:
    prefix = f"jobs/{job_id}/"
    return {name.removeprefix(prefix): storage.read_bytes(name) for name in storage.list(prefix.rstrip("/"))}


# -- single files -----------------------------------------------------------------------------------------


def test_shards_are_listed_and_downloaded_whole(client: Client, finished: Job, tmp_path: Path) -> None:
    manifests = client.jobs.shards(finished.id)
    assert [manifest.index for manifest in manifests] == [0, 1]
    client.jobs.download_shard(manifests[0], tmp_path / "new" / "shard.tar")
    assert sha256((tmp_path / "new" / "shard.tar").read_bytes()).hexdigest() == manifests[0].sha256


def test_a_download_goes_on_where_it_was_cut(service: str, finished: Job, tmp_path: Path) -> None:
    cuts = [300_000, 200_000, 10, 400_000]
    with cutting(service, cuts) as proxy, Client(proxy.url, sleep=lambda _: None) as client:
        client.jobs.download_student(finished.id, tmp_path / "student")
        assert proxy.cuts == 4
    assert files_in(tmp_path) == {"student": STUDENT}


def test_a_download_that_never_gets_on_is_given_up(tmp_path: Path) -> None:
    answers = [Answer(200, b"half", {"Content-Length": "8"})] * 3
    with (
        ScriptedServer(answers).running() as server,
        Client(server.url, sleep=lambda _: None, retries=1) as client,
        pytest.raises(ServerUnreachable),
    ):
        client.jobs.download_student("job-1", tmp_path / "student")
    assert len(server.asked) == 3
    assert files_in(tmp_path) == {}


def test_a_file_that_changed_meanwhile_is_sent_anew(tmp_path: Path) -> None:
    answers = [
        Answer(200, b"old ", {"ETag": '"1"', "Content-Length": "8"}),
        Answer(200, b"new file", {"ETag": '"2"'}),
    ]
    with ScriptedServer(answers).running() as server, Client(server.url, sleep=lambda _: None) as client:
        client.jobs.download_student("job-1", tmp_path / "student")
    assert server.asked[1].headers["range"] == "bytes=4-"
    assert server.asked[1].headers["if-range"] == '"1"'
    assert files_in(tmp_path) == {"student": b"new file"}


def test_a_damaged_download_leaves_nothing(client: Client, broker: Broker, storage: Storage, tmp_path: Path) -> None:
    client.jobs.create(job())
    manifest = announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    storage.put_bytes(b"x" * manifest.bytes, f"jobs/{manifest.job}/shards/{manifest.name}")
    with pytest.raises(DamagedDownload, match="announced was"):
        client.jobs.download_shard(manifest, tmp_path / "into" / manifest.name)
    assert list((tmp_path / "into").iterdir()) == []


# -- datasets ---------------------------------------------------------------------------------------------


def test_a_finished_job_comes_as_one_archive(client: Client, finished: Job, storage: Storage, tmp_path: Path) -> None:
    names = finished.download_dataset(tmp_path / "to")
    assert files_in(tmp_path / "to") == stored(storage, finished.id)
    assert set(names) == set(stored(storage, finished.id))


def test_exports_come_where_there_are_no_shards_and_where_the_shards_are_here_already(
    client: Client, broker: Broker, storage: Storage, finished: Job, tmp_path: Path
) -> None:
    storage.put_bytes(b"shards", "made/0.tar")
    fields = job(synthesis=None, shards="made/0.tar", distillation={"steps": 10, "export": ["onnx", "torchscript"]})
    distilled = client.jobs.create({name: value for name, value in fields.items() if value is not None})
    attempt = claim(broker, Role.DISTILLATION)
    broker.leases.finish(attempt, folder_completed=True, result={})
    exports = {"student.onnx", "student.torchscript.pt"}
    for name in ("student.safetensors", *exports):
        storage.put_bytes(name.encode(), f"jobs/{distilled.id}/{name}")
    distilled.download_dataset(tmp_path / "to")
    there = files_in(tmp_path / "to")
    assert there.keys() == {"student.safetensors", "metrics.json", *exports}
    assert there["student.onnx"] == b"student.onnx"

    (tmp_path / "to" / "student.onnx").unlink()
    assert exports <= set(distilled.download_dataset(tmp_path / "to"))
    assert files_in(tmp_path / "to").keys() == there.keys()


@pytest.mark.parametrize("cut_after", [3000, 6000, 9000, 50_000, 1_030_000])
def test_what_a_cut_archive_did_not_bring_comes_file_by_file(
    service: str, finished: Job, storage: Storage, tmp_path: Path, cut_after: int
) -> None:
    with cutting(service, [cut_after]) as proxy, Client(proxy.url, sleep=lambda _: None) as client:
        client.jobs.download_dataset(finished.id, tmp_path / "to")
        assert proxy.cuts == 1
    here, there = files_in(tmp_path / "to"), stored(storage, finished.id)
    assert here.keys() == there.keys()
    # Index, card and metrics are written here from what the API tells if they did not come.
    for name in here.keys() - {"index.json", "README.md", "metrics.json"}:
        assert here[name] == there[name]


def test_what_a_running_job_has_made_so_far_comes_file_by_file(
    client: Client, broker: Broker, storage: Storage, tmp_path: Path
) -> None:
    made = client.jobs.create(job())
    manifest = announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    told: list[str] = []
    names = client.jobs.download_dataset(made.id, tmp_path / "to", say=told.append)
    assert told == [f"{made.id} is running: this is what it has made so far"]
    assert set(names) == {f"shards/{manifest.name}", f"shards/{manifest.sidecar_name}", "index.json", "README.md"}


def test_a_shard_that_lies_damaged_in_the_archive_is_named(
    client: Client, finished: Job, storage: Storage, tmp_path: Path
) -> None:
    manifest = client.jobs.shards(finished.id)[1]
    storage.put_bytes(b"x" * manifest.bytes, f"jobs/{finished.id}/shards/{manifest.name}")
    with pytest.raises(DamagedDownload, match=manifest.name):
        finished.download_dataset(tmp_path / "to")
    assert not (tmp_path / "to" / "shards" / manifest.name).exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "job-1/../../evil", "a\\b", "C:evil"])
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    content = b"tar" * 100
    manifest = ShardManifest(
        name="job-1-00-000000-01.tar", job="job-1", partition=0, index=0, attempt=1, images=4, bytes=len(content),
        sha256=sha256(content).hexdigest(), class_counts={0: 4}, first_image=0, student_version=0,
        channels=3, height=32, width=32, image_format="png", created_at=1.0,
    )  # fmt: skip
    spec = JobSpec.model_validate(job(distillation=None, student=None)).model_dump(mode="json")
    record = {"id": "job-1", "state": "cancelled", "created_at": 1, "stages": {}, "spec": spec}
    page = {"data": [{"id": "1-0", **manifest.model_dump(mode="json")}], "has_more": False}
    empty = {"data": [], "has_more": False}
    answers = [
        Answer(200, json.dumps(record).encode()),
        Answer(200, json.dumps(page).encode()),
        Answer(200, out.getvalue()),
        Answer(200, content),  # the shard, asked for by itself
        Answer(404),  # the student
        Answer(404),  # the grid
        Answer(200, json.dumps(empty).encode()),
    ]
    target = tmp_path / "a" / "b" / "to"
    with ScriptedServer(answers).running() as server, Client(server.url) as client:
        client.jobs.download_dataset("job-1", target)
    assert {path for path in tmp_path.rglob("*") if path.is_file() and target not in path.parents} == set()
    assert "evil" not in {path.name for path in target.rglob("*")}
    assert (target / "shards" / manifest.name).read_bytes() == content
