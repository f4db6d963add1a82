"""What a job names is a file below the storage root. No address is fetched and no other file is touched."""

import socket
from typing import Any

import pytest
from starlette.testclient import TestClient

from shared.storage import Storage

OUTSIDE = [
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://evil.example/weights.pt",
    "s3://another-bucket/weights.pt",
    "hf://evil/repo",
    "simplecache::https://evil.example/weights.pt",
    "pipe:cat /etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "../outside.pt",
    "a/../../outside.pt",
    "./a.pt",
    "a\\..\\..\\outside.pt",
    "C:\\outside.pt",
    "a\nb.pt",
    ".tmp-unfinished",
]
FIELDS = ["teacher.checkpoint", "student.checkpoint", "evaluation.shards", "shards"]


def naming(written: dict[str, Any], field: str, name: str) -> dict[str, Any]:
    """The job with this name in this field."""
    if field == "shards":
        del written["synthesis"]
        del written["distillation"]["warmup_batches"]
        return written | {"shards": name}
    part, _, last = field.partition(".")
    written.setdefault(part, {})[last] = name
    return written


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up of a name other than this machine's fails the test."""
    look_up = socket.getaddrinfo

    def only_here(host: Any, *arguments: Any, **named: Any) -> Any:
        assert host in ("127.0.0.1", "localhost", "::1"), f"somebody asked for {host}"
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


@pytest.mark.usefixtures("no_connections")
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("path", ["/jobs", "/jobs:validate"])
def test_no_address_and_no_path_outside_the_storage_is_accepted(
    client: TestClient, written: dict[str, Any], field: str, path: str
) -> None:
    body = naming(written, field, "")
    part, _, last = field.partition(".")
    for name in OUTSIDE:
        (body[part] if last else body)[last or part] = name
        response = client.post(path, json=body)
        assert response.status_code == 422, name
        assert field in [error["field"] for error in response.json()["errors"]], name
        assert response.json()["code"] == "path_outside_storage", name
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("pattern", "harmless"),
    [
        ("{a.tar,/etc/passwd}", "a.tar"),
        ("{a,http://evil.example/x}.tar", "a.tar"),
        ("{a,..}/x.tar", "a/x.tar"),
        (".{a,.}/{b,..}/x.tar", ".a/b/x.tar"),
        ("{a,file}:/etc/passwd", None),
    ],
)
def test_a_pattern_is_judged_by_all_that_it_stands_for(
    client: TestClient, written: dict[str, Any], storage: Storage, pattern: str, harmless: str | None
) -> None:
    if harmless is not None:
        storage.put_bytes(b"tar", harmless)
    response = client.post("/jobs", json=naming(written, "shards", pattern))
    assert (response.status_code, response.json()["code"]) == (422, "path_outside_storage")
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("field", FIELDS)
def test_a_link_out_of_the_storage_is_not_followed(
    client: TestClient, written: dict[str, Any], storage: Storage, field: str
) -> None:
    folder = storage.local_path("links")
    assert folder is not None
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to("/etc")
    response = client.post("/jobs", json=naming(written, field, "links/passwd"))
    assert response.json()["code"] == "path_outside_storage"
    assert "root:" not in response.text
