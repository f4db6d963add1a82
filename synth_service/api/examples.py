"""Examples in the OpenAPI document: one for every JSON body, request, response or error.

They are made from the models themselves where these have many fields, so they show every field there is. A test
validates each against its schema.
"""

from collections.abc import Mapping
from typing import Any, Final

from shared.jobs import DistillationStage, JobRecord, Progress, Stage, Stages, State, SynthesisStage
from shared.specs import JobSpec
from shared.specs.estimates import estimate
from synth_service.api.problems import MEDIA_TYPE

JOB_ID = "job-019a8e2f6c1b5d3e7f90"
SHARD_ID = "1767225660000-0"
MODEL_ID = "model-019a8e2e10aa0c4d2b18"
TIME = 1767225600.0

WRITTEN: dict[str, Any] = {
    "name": "cifar10 wrn40_2 to wrn16_1",
    "teacher": {
        "arch": "wrn40_2",
        "num_classes": 10,
        "checkpoint": "teachers/cifar10-wrn40_2.pth",
        "input": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.201]},
    },
    "student": {"arch": "wrn16_1"},
    "synthesis": {"method": "fast-meta", "preset": "fast-5"},
}

NEW_KEY: dict[str, Any] = {
    "name": "ci",
    "scopes": ["read", "submit"],
    "expires_at": TIME + 90 * 86_400,
    "allowance": {"queued_jobs": 5, "running_jobs": 2, "bytes": 50_000_000_000},
}

MODEL: dict[str, Any] = {
    "id": MODEL_ID,
    "checkpoint": f"models/{MODEL_ID}",
    "filename": "cifar10-wrn40_2.pth",
    "owner": "alice",
    "created_at": TIME,
    "bytes": 9_055_161,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "format": "torch",
    "tensor_count": 245,
    "parameters": 2_248_989,
    "architectures": ["wrn40_2"],
    "num_classes": 10,
    "input_channels": 3,
}

ERRORS: dict[str, tuple[str, str, str]] = {
    "400": ("Bad Request", "bad_request", "The request ended before its body did."),
    "401": ("Unauthorized", "api_key_missing", "This needs an API key."),
    "403": ("Forbidden", "cross_site_request", "Requests from other sites are refused."),
    "404": ("Not Found", "job_not_found", f"There is no job {JOB_ID}."),
    "409": ("Conflict", "job_unfinished", f"{JOB_ID} has not ended yet."),
    "413": ("Content Too Large", "body_too_large", "The body is longer than 1,000,000 bytes."),
    "415": ("Unsupported Media Type", "unsupported_media_type", "The body must be application/json, not text/plain."),
    "416": ("Range Not Satisfiable", "range_not_satisfiable", "Range Not Satisfiable."),
    "422": ("Unprocessable Content", "invalid_request", "seed: must be at least 0; it is -1"),
    "429": (
        "Too Many Requests",
        "queue_full",
        "As many unfinished jobs as this deployment allows are waiting already.",
    ),
    "500": ("Internal Server Error", "internal_error", "The service failed to handle this request."),
    "503": ("Service Unavailable", "redis_unavailable", "The Redis server does not answer, or accepts no writes."),
    "507": ("Insufficient Storage", "storage_full", "The storage has no room for it."),
}


BODIES: Final[Mapping[str, Any]] = {
    "/jobs": WRITTEN,
    "/jobs:validate": WRITTEN,
    "/jobs/{job_id}/consumed": {"until": SHARD_ID},
    "/keys": NEW_KEY,
}


def add_examples(document: dict[str, Any]) -> dict[str, Any]:
    """Puts the examples into an OpenAPI document, in place."""
    answers = _answers()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if status >= "400" and MEDIA_TYPE in content:
                    content[MEDIA_TYPE]["example"] = error(status)
                elif status < "400" and "application/json" in content and (method, path) in answers:
                    content["application/json"]["example"] = answers[method, path]
            if path in BODIES and "requestBody" in operation:
                operation["requestBody"]["content"]["application/json"]["example"] = BODIES[path]
    return document


def error(status: str) -> dict[str, Any]:
    """What an error of this status looks like."""
    title, code, detail = ERRORS[status]
    problem = {"type": "about:blank", "title": title, "status": int(status), "code": code, "detail": detail}
    if status == "422":
        field, _, message = detail.partition(": ")
        problem["errors"] = [{"field": field, "message": message}]
    return problem


def _answers() -> dict[tuple[str, str], Any]:
    spec = JobSpec.model_validate(WRITTEN)
    job = _running(spec).model_dump(mode="json")
    queued = job | {"state": "queued", "started_at": None}
    event = {"id": "1767225612000-0", "type": "job_created", "at": TIME, "task": None, "data": {}}
    metric = {
        "id": "1767225900000-0", "task": "distillation:0", "at": TIME + 300, "step": 400, "values": {"loss": 0.41}
    }  # fmt: skip
    shard = {
        "id": SHARD_ID,
        "name": f"{JOB_ID}-00-000000-01.tar",
        "job": JOB_ID,
        "partition": 0,
        "index": 0,
        "attempt": 1,
        "images": 256,
        "bytes": 1_454_080,
        "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        "class_counts": {"0": 26, "1": 26},
        "first_image": 0,
        "student_version": 0,
        "channels": 3,
        "height": 32,
        "width": 32,
        "image_format": "png",
        "created_at": TIME + 60,
    }
    architecture = {
        "name": "wrn40_2",
        "family": "wide_resnet",
        "description": "Wide ResNet, depth 40, width 2",
        "arguments": {"depth": 40, "width": 2},
    }
    preset = {
        "name": "fast-5",
        "is_default": True,
        "settings": {"method": "fast-meta", "steps": 5},
        "by_teacher": {"wrn40_2": {"adversarial": 1.1, "one_hot": 0.4}},
    }
    worker = {"name": "synthesis-gpu1-4711", "role": "synthesis", "job": JOB_ID, "at": TIME, "device": "cuda:0"}
    key = NEW_KEY | {"fingerprint": "9f86d081884c7d65", "is_configured": False}
    tensors = [{"name": "conv1.weight", "dtype": "F32", "shape": [16, 3, 3, 3]}]
    return {
        ("post", "/jobs"): queued,
        ("get", "/jobs"): page([job]),
        ("get", "/jobs/{job_id}"): job,
        ("post", "/jobs/{job_id}/cancel"): job | {"state": "cancelling"},
        ("post", "/jobs/{job_id}/retry"): queued | {"retries": 1},
        ("post", "/jobs:validate"): {
            "spec": spec.model_dump(mode="json"),
            "estimate": estimate(spec).model_dump(mode="json"),
        },
        ("get", "/jobs/{job_id}/events"): page([event]),
        ("get", "/jobs/{job_id}/metrics"): page([metric]),
        ("get", "/jobs/{job_id}/shards"): page([shard]),
        ("post", "/jobs/{job_id}/consumed"): {"until": SHARD_ID, "shards_consumed": 1, "shards": 10},
        ("post", "/models"): MODEL,
        ("get", "/models"): page([MODEL]),
        ("get", "/models/{model_id}"): MODEL | {"tensors": tensors},
        ("post", "/keys"): key | {"key": "dfkd_" + "x" * 43},
        ("get", "/keys"): {"data": [key]},
        ("get", "/healthz"): {"status": "ok"},
        ("get", "/readyz"): {"status": "ok"},
        ("get", "/architectures"): {
            "data": [architecture],
            "forms": ["torchvision:NAME", "timm:NAME", "transformers:NAME"],
        },
        ("get", "/presets"): {"data": [preset]},
        ("get", "/workers"): {"data": [worker]},
    }


def page(data: list[Any]) -> dict[str, Any]:
    """A list as lists are answered."""
    return {"data": data, "has_more": False}


def _running(spec: JobSpec) -> JobRecord:
    assert spec.synthesis is not None
    assert spec.distillation is not None
    stage = Stage(
        state=State.RUNNING,
        attempt=1,
        worker="synthesis-gpu1-4711",
        heartbeat_at=TIME + 118,
        started_at=TIME + 2,
        progress=Progress.of(2560, spec.synthesis.num_images, 170.0),
    )
    distillation = Stage(
        state=State.RUNNING,
        attempt=1,
        worker="distillation-gpu2-815",
        heartbeat_at=TIME + 119,
        started_at=TIME + 2,
        progress=Progress.of(400, spec.distillation.steps or 0, 40.0),
    )
    return JobRecord(
        id=JOB_ID,
        name=spec.name,
        state=State.RUNNING,
        created_at=TIME,
        started_at=TIME + 2,
        stages=Stages(
            synthesis=SynthesisStage(**stage.model_dump(), partitions=[stage], shards=10, images=2560),
            distillation=DistillationStage(
                **distillation.model_dump(), shards_consumed=10, images_consumed=2560, student_version=400
            ),
        ),
        spec=spec.model_dump(mode="json"),
    )
