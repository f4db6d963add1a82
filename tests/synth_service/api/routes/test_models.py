import io
import json
import socket
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import save
from starlette.testclient import TestClient
from torch import nn

from shared.broker import Broker
from shared.networks.building import build_network
from shared.settings import Settings
from shared.specs import InputSpec, NetworkSpec
from shared.storage import Storage, model_paths
from synth_service.api.app import create_app
from tests.conftest import free_port
from tests.s3 import BUCKET
from tests.shared.networks.test_weights import Malice
from tests.synth_service.api.test_problems import problem
from tests.synth_service.api_process import serving
from tests.waiting import wait_until

MEGABYTE = 1024 * 1024


@pytest.fixture
def s3_storage(s3_server: str, tmp_path: Path) -> Storage:
    return Storage(f"s3://{BUCKET}/{tmp_path.name}")


def teacher() -> nn.Module:
    return build_network(NetworkSpec(arch="resnet8"), num_classes=10, input=InputSpec())


@pytest.fixture
def weights() -> bytes:
    return save(teacher().state_dict())


def upload(client: TestClient, content: bytes, **query: str) -> dict[str, Any]:
    response = client.post("/models", params={"filename": "mine.safetensors", **query}, content=content)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/models/{response.json()['id']}"
    model: dict[str, Any] = response.json()
    return model


def test_an_uploaded_checkpoint_is_described_and_stored(client: TestClient, storage: Storage, weights: bytes) -> None:
    model = upload(client, weights)
    described = {
        name: model[name] for name in ("filename", "bytes", "sha256", "format", "num_classes", "architectures")
    }
    assert described == {
        "filename": "mine.safetensors",
        "bytes": len(weights),
        "sha256": sha256(weights).hexdigest(),
        "format": "safetensors",
        "num_classes": 10,
        "architectures": ["resnet8"],
    }
    assert storage.list() == [model_paths.file(model["id"], "mine.safetensors")]
    assert storage.read_bytes(storage.list()[0]) == weights
    detail = client.get(f"/models/{model['id']}").json()
    shapes = {tensor["name"]: tensor["shape"] for tensor in detail.pop("tensors")}
    assert shapes == {name: list(tensor.shape) for name, tensor in teacher().state_dict().items()}
    assert detail == model


@pytest.mark.parametrize("reference", ["models/{}", "{}"])
def test_a_job_names_it_by_id_and_is_stored_with_its_path(
    client: TestClient, broker: Broker, written: dict[str, Any], weights: bytes, reference: str
) -> None:
    model = upload(client, weights)
    written["teacher"]["checkpoint"] = reference.format(model["id"])
    path = model_paths.file(model["id"], "mine.safetensors")
    assert client.post("/jobs:validate", json=written).json()["spec"]["teacher"]["checkpoint"] == path
    job = client.post("/jobs", json=written).json()
    assert job["spec"]["teacher"]["checkpoint"] == path

    refused = client.delete(f"/models/{model['id']}")
    problem(refused, 409, "model_in_use")
    assert job["id"] in refused.json()["detail"]
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/models/{model['id']}").status_code == 204
    problem(client.get(f"/models/{model['id']}"), 404, "model_not_found")
    gone = client.post("/jobs", json=written)
    problem(gone, 422, "model_not_found")
    assert gone.json()["errors"][0]["field"] == "teacher.checkpoint"


def test_a_retried_job_has_its_model_in_use_again(client: TestClient, written: dict[str, Any], weights: bytes) -> None:
    model = upload(client, weights)
    written["student"]["checkpoint"] = model["id"]
    job_id = client.post("/jobs", json=written).json()["id"]
    client.post(f"/jobs/{job_id}/cancel")
    client.post(f"/jobs/{job_id}/retry")
    problem(client.delete(f"/models/{model['id']}"), 409, "model_in_use")


def test_a_deleted_model_leaves_nothing(client: TestClient, broker: Broker, storage: Storage, weights: bytes) -> None:
    model = upload(client, weights)
    assert client.delete(f"/models/{model['id']}").status_code == 204
    assert storage.list() == []
    assert [key for key in broker.redis.scan_iter() if "model" in key] == []
    problem(client.delete(f"/models/{model['id']}"), 404, "model_not_found")


def test_models_are_listed_in_pages_newest_first(client: TestClient, weights: bytes) -> None:
    made = sorted((upload(client, weights)["id"] for _ in range(3)), reverse=True)
    first = client.get("/models?limit=2").json()
    rest = client.get("/models", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
    assert [model["id"] for model in first["data"] + rest["data"]] == made
    assert (first["has_more"], rest["has_more"]) == (True, False)


def files_below(storage: Storage) -> list[Path]:
    """All files, unfinished ones included."""
    return [path for path in Path(storage.root).rglob("*") if path.is_file()]


def test_what_no_worker_would_load_is_refused_and_leaves_nothing(
    client: TestClient, storage: Storage, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": teacher().state_dict(), "extra": Malice(tmp_path / "was-here")}, buffer)
    unsafe = client.post("/models", content=buffer.getvalue())
    problem(unsafe, 422, "unsafe_checkpoint")
    assert "mkdir" in unsafe.json()["detail"]
    assert "network.state_dict()" in unsafe.json()["hint"]
    for content in (b"", b"hello", buffer.getvalue()[:1000]):
        problem(client.post("/models", content=content), 422, "unreadable_checkpoint")
    assert files_below(storage) == []
    assert client.get("/models").json()["data"] == []
    assert not (tmp_path / "was-here").exists()


def test_a_wrong_checksum_is_refused_and_a_right_one_accepted(
    client: TestClient, storage: Storage, weights: bytes
) -> None:
    refused = client.post("/models", content=weights, headers={"X-Checksum-Sha256": "0" * 64})
    problem(refused, 422, "checksum_mismatch")
    assert files_below(storage) == []
    right = {"X-Checksum-Sha256": sha256(weights).hexdigest().upper()}
    assert client.post("/models", content=weights, headers=right).status_code == 201
    assert client.post("/models", content=weights, headers={"X-Checksum-Sha256": "abc"}).status_code == 422


@pytest.mark.parametrize("is_announced", [True, False])
def test_more_than_the_limit_is_413(settings: Settings, storage: Storage, weights: bytes, is_announced: bool) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (weights[start : start + 1000] for start in range(0, len(weights), 1000))

    small = settings.model_copy(update={"max_upload_bytes": len(weights) - 1})
    with TestClient(create_app(small)) as client:
        problem(client.post("/models", content=weights if is_announced else pieces()), 413, "upload_too_large")
        assert files_below(storage) == []
    with TestClient(create_app(settings.model_copy(update={"max_upload_bytes": len(weights)}))) as client:
        assert client.post("/models", content=weights).status_code == 201


def test_no_room_is_507(client: TestClient) -> None:
    headers = {"Content-Length": str(2**32 - 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "free_bytes", lambda _: 1000)
        problem(client.post("/models", content=b"x", headers=headers), 507, "storage_full")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("../../etc/passwd", "passwd"),
        ("a b.pt", "a_b.pt"),
        (".tmp-x", "tmp-x"),
        ("C:\\x\\net.pth", "net.pth"),
        ("..", "weights"),
        ("ü" * 150, "_" * 100),
    ],
)
def test_odd_file_names_are_made_plain(client: TestClient, weights: bytes, given: str, stored: str) -> None:
    assert upload(client, weights, filename=given)["filename"] == stored


def test_the_same_over_object_storage(redis_url: str, s3_storage: Storage, weights: bytes) -> None:
    settings = Settings(redis_url=redis_url, storage=s3_storage.root, allowed_hosts=("testserver",))
    with TestClient(create_app(settings)) as client:
        model = upload(client, weights)
        name = model_paths.file(model["id"], "mine.safetensors")
        assert s3_storage.read_bytes(name) == weights
        assert client.delete(f"/models/{model['id']}").status_code == 204
        assert s3_storage.list() == []


# -- a real process ---------------------------------------------------------------------------------------


def big_file(tensor_bytes: int) -> Iterator[bytes]:
    """A safetensors file of one tensor of zeros."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [tensor_bytes], "data_offsets": [0, tensor_bytes]}}).encode()
    yield struct.pack("<Q", len(header)) + header
    for _ in range(tensor_bytes // MEGABYTE):
        yield bytes(MEGABYTE)


def memory_of_api(which: str) -> float:
    """Megabytes: VmRSS is what the process has, VmHWM the most that it ever had."""
    (process,) = [each for each in psutil.Process().children() if "synth_service.api" in each.cmdline()]
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(which))


def test_a_large_upload_takes_little_memory_and_an_interrupted_one_leaves_nothing(
    redis_url: str, storage: Storage, weights: bytes
) -> None:
    with serving(redis_url, storage.root, free_port()) as url, httpx.Client(base_url=url, timeout=120) as client:
        assert client.post("/models", content=weights).status_code == 201
        before = memory_of_api("VmRSS")
        response = client.post("/models", content=big_file(300 * MEGABYTE))
        assert (response.status_code, response.json()["parameters"]) == (201, 300 * MEGABYTE)
        assert memory_of_api("VmHWM") - before < 50

        kept = files_below(storage)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n")
            connection.sendall(bytes(3_000_000))
            wait_until(lambda: len(files_below(storage)) == len(kept) + 1)
        wait_until(lambda: files_below(storage) == kept)
        assert len(client.get("/models").json()["data"]) == 2
