import errno
import os
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from shared.settings import Settings
from shared.shards.patterns import expand_shards
from shared.storage import Storage
from synth_service.api.app import create_app


def refusal(client: TestClient, written: dict[str, Any]) -> tuple[str, list[str]]:
    response = client.post("/jobs", json=written)
    assert response.status_code == 422
    assert client.get("/jobs").json()["data"] == []
    problem = response.json()
    return problem["code"], [error["field"] for error in problem["errors"]]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "s3://bucket/x", "a\\b", "C:/x"])
def test_a_path_outside_the_storage_is_refused(client: TestClient, written: dict[str, Any], name: str) -> None:
    written["teacher"]["checkpoint"] = name
    assert refusal(client, written) == ("path_outside_storage", ["teacher.checkpoint"])


def test_a_link_that_leaves_the_storage_is_refused(
    client: TestClient, written: dict[str, Any], storage: Storage
) -> None:
    link = storage.local_path("teachers/link.safetensors")
    assert link is not None
    link.symlink_to("/etc/passwd")
    written["teacher"]["checkpoint"] = "teachers/link.safetensors"
    assert refusal(client, written) == ("path_outside_storage", ["teacher.checkpoint"])


def test_every_missing_file_is_named_with_the_remedy(client: TestClient, written: dict[str, Any]) -> None:
    written["teacher"]["checkpoint"] = "missing.safetensors"
    written["student"]["checkpoint"] = "none.safetensors"
    written["evaluation"] = {"shards": "held-out.tar"}
    response = client.post("/jobs", json=written).json()
    assert response["code"] == "not_found_in_storage"
    assert [error["field"] for error in response["errors"]] == [
        "teacher.checkpoint",
        "student.checkpoint",
        "evaluation.shards",
    ]
    assert "`missing.safetensors`" in response["errors"][0]["message"]
    assert "Copy the file there" in response["hint"]


@pytest.mark.parametrize("pattern", ["set-{000..009}.tar", "set-{000,007}.tar", "set-000.tar"])
def test_shards_to_distil_are_looked_for(
    client: TestClient, written: dict[str, Any], storage: Storage, pattern: str
) -> None:
    del written["synthesis"]
    del written["distillation"]["warmup_batches"]
    written["shards"] = pattern
    assert refusal(client, written) == ("not_found_in_storage", ["shards"])
    *others, last = expand_shards(pattern)
    for name in others:
        storage.put_bytes(b"tar", name)
    response = client.post("/jobs", json=written)
    assert f"`{last}`" in response.json()["errors"][0]["message"]
    storage.put_bytes(b"tar", last)
    assert client.post("/jobs", json=written).status_code == 202


def test_a_folder_is_no_checkpoint(client: TestClient, written: dict[str, Any]) -> None:
    written["teacher"]["checkpoint"] = "teachers"
    assert refusal(client, written) == ("not_found_in_storage", ["teacher.checkpoint"])


def test_code_is_imported_only_from_packages_that_the_operator_allows(
    client: TestClient, settings: Settings, written: dict[str, Any]
) -> None:
    written["student"]["arch"] = "mine.networks:small"
    assert refusal(client, written) == ("factory_not_allowed", ["student.arch"])
    allowing = create_app(settings.model_copy(update={"allowed_factories": ("mine",)}))
    with TestClient(allowing) as allowed:
        assert allowed.post("/jobs", json=written).status_code == 202


def test_a_webhook_goes_only_to_hosts_that_the_operator_allows(
    client: TestClient, settings: Settings, written: dict[str, Any]
) -> None:
    written["webhook"] = "https://hooks.example.org/?token=swordfish"
    assert refusal(client, written) == ("webhook_not_allowed", ["webhook"])
    answer = client.post("/jobs:validate", json=written)
    assert "`hooks.example.org:443`" in answer.text
    assert "DFKD_WEBHOOK_HOSTS" in answer.json()["hint"]
    assert "swordfish" not in answer.text
    secret = "whsec_" + "a" * 44
    allowing = settings.model_copy(update={"webhook_hosts": ("hooks.example.org",), "webhook_secret": secret})
    with TestClient(create_app(allowing)) as allowed:
        assert allowed.post("/jobs", json=written).status_code == 202
        written["webhook"] = "https://hooks.example.org:6379/"
        assert allowed.post("/jobs", json=written).json()["code"] == "webhook_not_allowed"
        written["webhook"] = "https://hooks.example.org@evil.org/"
        assert allowed.post("/jobs", json=written).json()["code"] == "invalid_request"


@pytest.mark.parametrize("mount_point", ["empty", "gone"])
def test_a_volume_that_is_not_mounted_is_503_and_no_missing_file(
    client: TestClient, written: dict[str, Any], storage: Storage, mount_point: str
) -> None:
    job_id = client.post("/jobs", json=written).json()["id"]
    root = Path(storage.root)
    root.rename(root.with_name("away"))
    if mount_point == "empty":
        root.mkdir()
    for answer in (client.post("/jobs", json=written), client.post("/jobs:validate", json=written)):
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert answer.headers["retry-after"]
    upload = client.post("/models", content=b"x" * 100)
    assert upload.status_code in (422, 503)
    assert client.get("/readyz").status_code == 503
    assert client.get(f"/jobs/{job_id}").status_code == 200
    client.post(f"/jobs/{job_id}/cancel")
    assert client.delete(f"/jobs/{job_id}").status_code == 204  # the files follow once the volume is back
    assert not root.exists() or list(root.iterdir()) == []
    if root.exists():
        root.rmdir()
    root.with_name("away").rename(root)
    assert client.post("/jobs", json=written).status_code == 202


def test_a_checkpoint_that_may_not_be_read_is_503_and_told_in_the_log(
    client: TestClient, written: dict[str, Any], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(written["teacher"]["checkpoint"]):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)  # the tests may run as root, whom no file mode stops
    with structlog.testing.capture_logs() as logs:
        answer = client.post("/jobs", json=written)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    told = next(line for line in logs if line["event"] == "storage_unavailable")
    assert "Permission denied" in told["error"]
    assert written["teacher"]["checkpoint"] in told["error"]
