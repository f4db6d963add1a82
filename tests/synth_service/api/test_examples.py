"""The OpenAPI document is complete: what a reader or a generator of clients needs of every operation."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from synth_service.api.examples import ERRORS
from synth_service.api.problems import MEDIA_TYPE


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def validate(example: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(example)


def test_every_operation_says_what_it_does_and_what_it_answers(document: dict[str, Any]) -> None:
    listed = list(operations(document))
    assert len(listed) >= 24
    for name, operation in listed:
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        succeeded = {status: each for status, each in operation["responses"].items() if "200" <= status < "300"}
        assert succeeded, name
        for status, response in succeeded.items():
            assert status in ("204", "206") or name == "GET /metrics" or response["content"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])


def test_every_json_answer_and_every_body_has_an_example_that_is_valid(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            json_content = response.get("content", {}).get("application/json")
            if json_content is not None:
                assert "example" in json_content, (name, status)
                validate(json_content["example"], json_content["schema"], document)
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            validate(body["example"], body["schema"], document)


def test_every_error_is_a_problem_with_an_example(document: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/ProblemDetail"}
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == [MEDIA_TYPE], (name, status)
                validate(response["content"][MEDIA_TYPE]["example"], schema, document)
    assert {status for _, each in operations(document) for status in each["responses"] if status >= "400"} <= set(
        ERRORS
    )


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/jobs", "GET, HEAD, POST"),
        ("/jobs/job-00000000000000000000", "DELETE, GET, HEAD"),
        ("/models", "GET, HEAD, POST"),
        ("/workers", "GET, HEAD"),
        ("/jobs:validate", "POST"),
    ],
)
def test_a_wrong_method_is_answered_with_all_right_ones(client: TestClient, path: str, allowed: str) -> None:
    response = client.patch(path)
    assert (response.status_code, response.headers["allow"], response.json()["code"]) == (
        405,
        allowed,
        "method_not_allowed",
    )
