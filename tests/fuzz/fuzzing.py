"""Generated requests against the real service: what `/openapi.json` promises, and what the API then does.

The service has its server, both workers and a finished job, so requests that follow the links between
operations come to real shards, students and models. API keys are on, so that a route that forgets to ask for one
is noticed. schemathesis does the work, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from shared.networks.building import build_network
from shared.specs import InputSpec, StudentSpec
from shared.storage import Storage
from tests.e2e.service import REPOSITORY, Service

KEY = "a-key-that-only-the-fuzzing-knows"
EXAMPLE_TEACHER = ("wrn40_2", "teachers/cifar10-wrn40_2.pth")
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@contextmanager
def fuzzed_service(redis_url: str, folder: Path) -> Iterator[tuple[Service, str]]:
    """A service to be fuzzed, and the id of its finished job."""
    environment = {
        "DFKD_API_KEYS": f"fuzzing:{KEY}",
        "DFKD_MAX_REQUESTS_PER_SECOND": "0",
        "DFKD_MAX_WRONG_KEYS": "1000000",
        "DFKD_MAX_QUEUED_JOBS": "100000",
    }
    service = Service(redis_url, Storage(str(folder / "storage")), folder / "logs", environment)
    service.client.headers["Authorization"] = f"Bearer {KEY}"
    try:
        put_teacher_of_the_documents(service.storage, folder)
        service.start_all()
        job_id = service.submit(small_job())
        assert service.wait_until_final(job_id).error is None
        yield service, job_id
    finally:
        service.stop()


def put_teacher_of_the_documents(storage: Storage, folder: Path) -> None:
    """The checkpoint that the examples in `/openapi.json` name, so that they are accepted."""
    arch, name = EXAMPLE_TEACHER
    network = build_network(StudentSpec(arch=arch), num_classes=10, input=InputSpec())
    torch.save(network.state_dict(), folder / "teacher.pth")
    storage.put_file(folder / "teacher.pth", name)


def small_job() -> dict[str, Any]:
    """The digits job, over in seconds."""
    fields: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples" / "digits" / "job.yaml").read_text())
    fields["synthesis"] |= {"num_images": 256, "steps": 2}
    fields["distillation"] |= {"steps": 20}
    fields["evaluation"]["every_steps"] = 20
    return fields


def fuzz(service: Service, job_id: str, folder: Path, *, examples: int, seed: int) -> dict[str, Any]:
    """Runs schemathesis with all its checks.

    Args:
        job_id: a finished job, whose outputs are asked for.
        examples: most generated cases for each operation and phase.
        seed: of everything that is generated.

    Returns:
        ``exit_code``, ``report`` as schemathesis writes it, and ``output`` for people.
    """
    report = folder / "report.json"
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.read_text().replace("FINISHED_JOB", job_id))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run"]
    command += [f"{service.client.base_url}/openapi.json".replace("//openapi", "/openapi"), "--checks", "all"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--max-examples", str(examples), "--seed", str(seed)]
    command += ["--report", "json", "--report-json-path", str(report), "--generation-database", "none", "--no-color"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = json.loads(report.read_text()) if report.is_file() else {}
    return {"exit_code": done.returncode, "report": found, "output": done.stdout + done.stderr}
