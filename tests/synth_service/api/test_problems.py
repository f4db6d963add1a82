import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.testclient import TestClient

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.settings import Settings
from synth_service.api.app import create_app
from synth_service.api.problems import ERRORS_TOLD, MEDIA_TYPE
from synth_service.wire import ProblemDetail


def problem(response: Any, status: int, code: str) -> ProblemDetail:
    """The problem of a response that must be this one."""
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.headers["x-content-type-options"] == "nosniff"
    found = ProblemDetail.model_validate_json(response.content)
    assert (response.status_code, found.status, found.code) == (status, status, code)
    assert "Traceback" not in response.text
    return found


def post(client: TestClient, body: bytes, content_type: str = "application/json") -> Any:
    return client.post("/jobs", content=body, headers={"Content-Type": content_type})


def test_an_unknown_path_and_a_wrong_method_are_problems(client: TestClient) -> None:
    problem(client.get("/nothing"), 404, "no_such_path")
    wrong = client.delete("/jobs")
    problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"]


@pytest.mark.parametrize("job_id", ["1", "job-123", f"job-{'0' * 21}", f"job-{'G' * 20}", "job-" + "0" * 19 + "%0A"])
def test_a_malformed_job_id_is_refused_before_redis_is_asked(client: TestClient, job_id: str) -> None:
    found = problem(client.get(f"/jobs/{job_id}"), 422, "invalid_request")
    assert found.errors is not None
    assert found.errors[0].field == "job_id"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"synthesis": {"num_images": 0}}, "synthesis.num_images"),
        ({"synthesis": {"method": "deepinversion", "steps": 0}}, "synthesis.steps"),
        (
            {"synthesis": {"method": "fast", "augmentation": {"crop_padding": -1}}},
            "synthesis.augmentation.crop_padding",
        ),
        ({"synthesis": {"method": "slow"}}, "synthesis"),
        ({"synthesis": {"preset": "fast-3"}}, "synthesis.preset"),
        ({"synthesis": {"preset": []}}, "synthesis.preset"),
        ({"synthesis": {"num_images": 4, "partitions": 8}}, "synthesis.partitions"),
        ({"synthesis": {"stepps": 3}}, "synthesis.stepps"),
        (
            {"distillation": {"warmup_batches": 0, "learning_rate": 0.1, "final_learning_rate": 1}},
            "distillation.final_learning_rate",
        ),
        ({"distillation": None}, "student"),
        ({"distillation": {"warmup_batches": 0, "pacing": "lockstep", "steps": 1}}, "distillation.steps"),
        ({"student": None}, "student"),
        ({"distillation": {"warmup_batches": 99}}, "distillation.warmup_batches"),
        ({"student": {"arch": "resnet9"}}, "student.arch"),
        ({"shards": "x.tar"}, "shards"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"name": "a\0b"}, "name"),
        ({"metadata": {"a\0": "b"}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_an_invalid_field_is_named_as_the_client_writes_it(
    client: TestClient, written: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    found = problem(client.post("/jobs", json=written | change), 422, "invalid_request")
    assert found.errors is not None
    assert [error.field for error in found.errors] == [field]
    assert found.errors[0].message in found.detail


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mean": [0.5, 0.5]}, "teacher.input.mean"),
        ({"std": 0}, "teacher.input.std"),
        ({"channels": 64, "height": 2048, "width": 2048}, "teacher.input.height"),
        ({"channels": 0}, "teacher.input.channels"),
    ],
)
def test_the_field_of_a_rule_over_several_is_named_once(
    client: TestClient, written: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    written["teacher"]["input"] = change
    found = problem(client.post("/jobs", json=written), 422, "invalid_request")
    assert found.errors is not None
    assert field in [error.field for error in found.errors]


def nested(depth: int) -> bytes:
    return b'{"teacher": ' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{} {}",
        b'{"seed": NaN}',
        b'{"seed": Infinity}',
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\x00"}',
        b'{"seed": ' + b"9" * 10_000 + b"}",
        nested(1_000),
        b"[" * 19_000,
    ],
)
def test_what_is_no_json_is_refused(client: TestClient, body: bytes) -> None:
    problem(post(client, body), 422, "invalid_json")


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(settings: Settings) -> None:
    body = b"{" + b",".join(b'"k%d":0' % n for n in range(60_000)) + b"}"
    with TestClient(create_app(settings.model_copy(update={"max_body_bytes": 1_000_000}))) as client:
        problem(post(client, body), 422, "invalid_json")


def test_of_very_many_errors_the_first_are_told(client: TestClient) -> None:
    body = b"{" + b",".join(b'"k%d":0' % n for n in range(1_500)) + b"}"
    found = problem(post(client, body), 422, "invalid_request")
    assert found.errors is not None
    assert len(found.errors) == ERRORS_TOLD


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"text"', b"1", nested(150)])
def test_what_is_no_job_is_refused(client: TestClient, body: bytes) -> None:
    problem(post(client, body), 422, "invalid_request")


@pytest.mark.parametrize(
    "value", [b"1e999", b"-1e999", b"1" + b"0" * 4000, b'"\\u0000"', b'{"a\\u0000": 1}', b"[[1e999]]"]
)
def test_what_cannot_be_stored_is_refused_wherever_it_hides(
    client: TestClient, written: dict[str, Any], value: bytes
) -> None:
    written["student"]["kwargs"] = {"x": "HERE"}
    body = json.dumps(written).encode().replace(b'"HERE"', value)
    found = problem(post(client, body), 422, "invalid_request")
    assert found.errors is not None
    assert found.errors[0].field.startswith("student.kwargs.x")


def test_what_is_stored_comes_back_as_it_was(client: TestClient, written: dict[str, Any]) -> None:
    deep: Any = 1
    for _ in range(90):
        deep = [deep]
    kwargs = {"big": 2**63, "float": math.pi, "text": "grüße 🎈 \\u0000", "deep": deep, "none": None}
    written["student"]["kwargs"] = kwargs
    response = client.post("/jobs", json=written)
    assert response.status_code == 202
    assert client.get(response.headers["location"]).json()["spec"]["student"]["kwargs"] == kwargs


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_declared_as_json_is_415(client: TestClient, content_type: str) -> None:
    problem(post(client, b"{}", content_type), 415, "unsupported_media_type")


def test_a_charset_beside_the_media_type_is_fine(client: TestClient, written: dict[str, Any]) -> None:
    body = json.dumps(written).encode()
    assert post(client, body, "application/json; charset=utf-8").status_code == 202


def test_a_long_body_is_413_whether_its_length_was_announced_or_not(client: TestClient) -> None:
    problem(post(client, b" " * 20_001), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(21):
            yield b" " * 1_000

    problem(client.post("/jobs", content=chunks(), headers={"Content-Type": "application/json"}), 413, "body_too_large")


@pytest.mark.parametrize(
    "path",
    [
        "/jobs?limit=0",
        "/jobs?limit=101",
        "/jobs?limit=x",
        "/jobs?after=x",
        "/jobs?status=done",
        f"/jobs?name={'a' * 201}",
    ],
)
def test_a_bad_query_is_refused(client: TestClient, path: str) -> None:
    found = problem(client.get(path), 422, "invalid_request")
    assert found.errors is not None
    assert found.errors[0].field == path.split("?")[1].split("=")[0]


def test_an_unforeseen_error_is_a_500_that_tells_nothing_and_is_logged(
    app: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("secret")

    with TestClient(app) as client:
        response = client.get("/broken")
    problem(response, 500, "internal_error")
    assert "secret" not in response.text
    captured = capsys.readouterr()
    assert "secret" in captured.out + captured.err


def test_errors_of_the_framework_become_problems(app: FastAPI) -> None:
    @app.get("/teapot")
    def teapot() -> Response:
        return Response("short and stout", 418, media_type="text/plain")

    with TestClient(app) as client:
        problem(client.get("/teapot"), 418, "im_a_teapot")


def test_a_server_that_refuses_writes_is_503(client: TestClient, broker: Broker, written: dict[str, Any]) -> None:
    broker.redis.config_set("maxmemory", 1)
    try:
        problem(client.post("/jobs", json=written), 503, "redis_unavailable")
    finally:
        broker.redis.config_set("maxmemory", 0)
    assert client.post("/jobs", json=written).status_code == 202


def test_every_operation_is_documented_with_its_errors(client: TestClient, job: JobRecord) -> None:
    document = client.get("/openapi.json").json()
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert len(operations) >= 15
    for operation in operations:
        assert operation["summary"]
        assert operation["tags"]
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == [MEDIA_TYPE]
    assert {"202", "413", "415", "422", "429", "503"} <= set(document["paths"]["/jobs"]["post"]["responses"])
    assert "HTTPValidationError" not in document["components"]["schemas"]
