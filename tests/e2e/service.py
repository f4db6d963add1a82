"""A whole service for a test: real server, API and workers as processes, driven over HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from shared.broker import Broker
from shared.jobs import Event, JobRecord
from shared.storage import Storage
from tests.conftest import free_port
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "examples" / "digits"
SCENES = REPOSITORY / "examples" / "scenes"
JOB_SECONDS = 180.0


class Service:
    """API and workers as child processes over a given server and storage; ``stop`` ends them all.

    Args:
        redis_url: a server that is there already.
        storage: storage root, which gets the digits example's files.
        logs: folder for one log file for each process.
        environment: further variables of every process.
    """

    def __init__(self, redis_url: str, storage: Storage, logs: Path, environment: dict[str, str]) -> None:
        self.storage = storage
        self.broker = Broker(redis_url, lease_seconds=5.0, retries=1)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = logs
        port = free_port()
        self.environment = {
            **os.environ,
            "REDIS_URL": redis_url,
            "DFKD_STORAGE": storage.root,
            "DFKD_PORT": str(port),
            "DFKD_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "DFKD_LEASE_SECONDS": "5",
            "DFKD_LOG_FORMAT": "json",
            **environment,
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        for file in DIGITS.iterdir():
            storage.put_file(file, f"digits/{file.name}")

    def start(self, name: str, module: str) -> subprocess.Popen[bytes]:
        """Starts ``python -m module`` under a name of the test's choice."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log
            )
        self.processes[name] = process
        return process

    def start_all(self) -> None:
        """API, one synthesis worker and one distiller."""
        self.start("api", "synth_service.api")
        self.start("synthesis", "synth_service.worker")
        self.start("distiller", "distiller.worker")
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Returns once the API answers."""

        def is_ready() -> bool:
            try:
                return self.client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, timeout=60)

    def submit(self, fields: dict[str, Any]) -> str:
        """POST /jobs; returns the id."""
        response = self.client.post("/jobs", json=fields)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def record(self, job_id: str) -> JobRecord:
        """GET /jobs/{id}."""
        return JobRecord.model_validate(self.client.get(f"/jobs/{job_id}").raise_for_status().json())

    def wait_for(self, job_id: str, condition: Callable[[JobRecord], bool], timeout: float = JOB_SECONDS) -> JobRecord:
        """The job's record as soon as the condition holds for it."""

        def satisfied() -> JobRecord | None:
            record = self.record(job_id)
            return record if condition(record) else None

        found = wait_until(satisfied, timeout=timeout)
        assert found is not None
        return found

    def wait_until_final(self, job_id: str, timeout: float = JOB_SECONDS) -> JobRecord:
        """The job's record once it has ended."""
        return self.wait_for(job_id, lambda record: record.state.is_final, timeout)

    def events(self, job_id: str) -> list[Event]:
        """All events of a job, in order."""
        return self.broker.reports.events(job_id, limit=100_000)

    def stop(self) -> None:
        """Ends every process, politely first, and checks that each left with 0."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        codes = {name: process.wait(timeout=30) for name, process in self.processes.items()}
        self.client.close()
        self.broker.close()
        shutil.rmtree(self._logs, ignore_errors=True)
        # uvicorn shuts down in good order and then dies of the signal it was sent.
        assert set(codes.values()) <= {0, -signal.SIGTERM, -signal.SIGKILL}, codes
