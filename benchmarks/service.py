"""A service of its own for one measurement: real server, API and one worker of each role, as processes.

The parts are those of ``dfkd up``. Only the threads are the benchmark's choice, which is why it starts the
workers itself.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks.digits import EXAMPLES
from shared.broker import Broker
from shared.jobs import Event, JobRecord
from shared.shards.manifest import ShardManifest
from shared.storage import Storage
from synth_service.client import Client
from synth_service.local.redis import LOOPBACK, answers, free_port
from synth_service.local.service import WORKER_NICENESS, LocalService, StopSignals
from synth_service.local.supervisor import Program, Supervisor

READY_SECONDS = 120.0
POLL_SECONDS = 0.2
LINES_KEPT = 60
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "DFKD_THREADS")


class MeasuredService:
    """What a measurement needs of a running service."""

    def __init__(self, service: LocalService, client: Client, broker: Broker, redis_url: str, lines: list[str]) -> None:
        self._service = service
        self._redis_url = redis_url
        self._client = client
        self._broker = broker
        self._lines = lines

    def run(self, fields: dict[str, Any], timeout_seconds: float) -> JobRecord:
        """Submits a job and returns its record once it has succeeded.

        Raises:
            RuntimeError: it ended otherwise or took too long; the message holds the last lines of the log.
        """
        job = self._client.jobs.create(fields)
        self.wait(lambda: self._client.jobs.get(job.id).state.is_final, timeout_seconds, f"job {job.id} is not done")
        job = self._client.jobs.get(job.id)
        if job.result is None:
            raise RuntimeError(f"job {job.id} {job.state}: {job.error}\n" + self._log())
        return job

    def shards(self, job_id: str) -> list[ShardManifest]:
        """Manifests of all shards."""
        return list(self._client.jobs.shards(job_id))

    def events(self, job_id: str) -> list[Event]:
        """All events, oldest first."""
        return self._broker.reports.events(job_id, limit=100_000)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """All measured values, oldest first."""
        return self._broker.reports.metrics(job_id)

    @property
    def url(self) -> str:
        """Address of the API."""
        return self._service.url

    def submit(self, fields: dict[str, Any]) -> str:
        """Queues a job; returns its id."""
        return self._client.jobs.create(fields).id

    def cancel(self, job_id: str) -> None:
        """Asks a job to stop."""
        self._client.jobs.cancel(job_id)

    def kd_steps(self, job_id: str) -> int:
        """KD steps done so far."""
        stage = self._broker.jobs.get(job_id).stages.distillation
        return 0 if stage is None else stage.progress.done

    def pid(self, program: str) -> int:
        """Process id of a running program: ``api``, ``synth-1``, …"""
        return self._service.supervisor.pids()[program]

    def redis_commands(self, process: psutil.Process) -> int:
        """Commands that the server has received over the connections that a process has open."""
        ports = {connection.laddr.port for connection in process.net_connections("tcp")}
        with redis.Redis.from_url(self._redis_url) as server:
            clients = server.client_list()
        return sum(int(each["tot-cmds"]) for each in clients if int(each["addr"].rpartition(":")[2]) in ports)

    def workers(self) -> int:
        """Workers that are up."""
        return len(self._broker.workers.all())

    def wait(self, condition: Callable[[], bool], timeout_seconds: float, complaint: str) -> None:
        """Returns once the condition holds, keeping the processes alive meanwhile."""
        until = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > until:
                raise RuntimeError(f"{complaint} after {timeout_seconds:g} s\n" + self._log())
            self._service.pause(POLL_SECONDS)

    def _log(self) -> str:
        return "\n".join(self._lines[-LINES_KEPT:])


@contextmanager
def measured_service(threads: int, **settings: object) -> Iterator[MeasuredService]:
    """A service whose workers are up; nothing of it is left afterwards.

    Args:
        threads: of each of the two workers.
        settings: fields of ``shared.settings.Settings`` for the API.
    """
    lines: list[str] = []

    def note(name: str, line: str) -> None:
        lines.append(f"{name:>12} {line}")

    with tempfile.TemporaryDirectory(prefix="dfkd-benchmark-") as name, StopSignals() as signals:
        folder = Path(name)
        storage = Storage(str(folder / "storage"))
        for file in ("teacher.safetensors", "held-out.tar"):
            storage.put_file(EXAMPLES / "digits" / file, f"digits/{file}")
        port = free_port()
        redis_url = f"redis://{LOOPBACK}:{port}/0"
        server = _module("redis", "synth_service.local.redis", str(folder / "redis"), str(port))
        # The server is stopped last: the API and the workers say goodbye to it.
        with Supervisor(on_output=note, on_event=lambda text: note("supervisor", text)) as supervisor:
            supervisor.start(server)
            service = LocalService(
                storage=storage.root,
                redis_url=redis_url,
                redis_folder=folder / "unused",
                host=LOOPBACK,
                port=0,
                synth_workers=0,
                distillers=0,
                signals=signals,
                on_output=note,
                on_event=lambda text: note("supervisor", text),
                settings={f"DFKD_{name.upper()}": str(value) for name, value in settings.items()},
            )
            _wait_for_server(port, signals)
            with service, Client(service.url) as client:
                environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
                environment |= {"DFKD_STORAGE": storage.root, "DFKD_REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
                service.supervisor.start(
                    _module("synth-1", "synth_service.worker", environment=environment),
                    _module("distiller-1", "distiller.worker", environment=environment),
                )
                broker = Broker(redis_url, retries=1)
                try:
                    measured = MeasuredService(service, client, broker, redis_url, lines)
                    service.wait_until_ready(READY_SECONDS)
                    measured.wait(lambda: measured.workers() == 2, READY_SECONDS, "the workers are not up")
                    yield measured
                finally:
                    broker.close()


def _module(name: str, module: str, *arguments: str, environment: dict[str, str] | None = None) -> Program:
    niceness = WORKER_NICENESS if module.endswith(".worker") else 0
    return Program(name, [sys.executable, "-m", module, *arguments], environment or {}, niceness=niceness)


def _wait_for_server(port: int, signals: StopSignals) -> None:
    until = time.monotonic() + READY_SECONDS
    while not answers(port):
        signals.check()
        if time.monotonic() > until:
            raise RuntimeError(f"the server does not answer on port {port} after {READY_SECONDS:g} s")
        time.sleep(0.05)
