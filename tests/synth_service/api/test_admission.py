from typing import Any

import pytest
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
