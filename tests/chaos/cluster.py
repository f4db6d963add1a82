"""All processes of a deployment, each restarted as soon as it dies, on files that outlive them.

The server keeps an append-only file as ``dfkd up`` has it, and everybody reaches it through a proxy. The
storage is a disk of its own, or an object store; see ``stores``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from shared.broker import Broker
from synth_service.local.tethered import tethered
from tests.chaos.proxy import Proxy
from tests.chaos.stores import Disk, Objects
from tests.conftest import free_port
from tests.e2e.service import DIGITS, REPOSITORY, SCENES
from tests.waiting import slowness, wait_until

LEASE_SECONDS = 15.0
"""The default, as is everything else: attempts, damaged shards."""

START_SECONDS = 10.0
"""What a worker takes to import everything, on a machine that has nothing else to do."""

ENDING_CPU_SECONDS = 10.0
ENDING_SECONDS = 120.0
"""What a process may use of the processor after SIGTERM, and how long it may take in all, waiting on a busy machine."""

MODULES = {
    "api": "synth_service.api",
    "synthesis-1": "synth_service.worker",
    "synthesis-2": "synth_service.worker",
    "distiller-1": "distiller.worker",
    "distiller-2": "distiller.worker",
}
WORKERS = tuple(name for name in MODULES if name != "api")


class Ending:
    """A process that was told to end."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._used = self._cpu_seconds()
        self._deadline = time.monotonic() + ENDING_SECONDS

    def is_late(self) -> bool:
        """It worked on, or hangs."""
        return self._cpu_seconds() - self._used > ENDING_CPU_SECONDS or time.monotonic() > self._deadline

    def _cpu_seconds(self) -> float:
        try:
            times = self._process.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system


class Cluster:
    """Server, proxy, API, two synthesis workers and two distillers. Use it as a context manager.

    Args:
        folder: for everything that the processes write.
        store: where their files lie; closed with the cluster.
    """

    def __init__(self, folder: Path, store: Disk | Objects) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.exit_problems: list[str] = []
        self.server_port = free_port()
        self.server_folder = folder / "redis"
        self._servers = 1
        self._promoted: tuple[int, Path, subprocess.Popen[bytes]] | None = None
        self._retired: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.aof_sizes: list[tuple[float, Path, int]] = []
        self._resting: set[str] = set()
        self._stopping: dict[int, Ending] = {}
        self._ended: set[int] = set()
        self._started_at: dict[str, float] = {}
        self._young: set[int] = set()
        """Processes that were told to end while they were starting."""
        self.store = store
        self.storage = store.storage
        for name in ("tmp", "logs"):
            (folder / name).mkdir()
        for example in (DIGITS, SCENES):
            for name in ("teacher.safetensors", "held-out.tar"):
                self.storage.put_file(example / name, f"{example.name}/{name}")

    def __enter__(self) -> Cluster:
        self.proxy = Proxy(self.server_port)
        self.broker = self._connect()
        api_port = free_port()
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{api_port}", timeout=10)
        self._environment = {
            **os.environ,
            "REDIS_URL": f"redis://127.0.0.1:{self.proxy.port}",
            "DFKD_STORAGE": self.storage.root,
            "DFKD_PORT": str(api_port),
            "DFKD_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "DFKD_LOG_FORMAT": "json",
            "TMPDIR": str(self.folder / "tmp"),
            **self.store.environment,
        }
        self.keep_running()
        wait_until(self.is_ready, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        retired = [process for _, process in self._retired]
        for process in [*self.processes.values(), *retired, *([self._promoted[2]] if self._promoted else [])]:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.proxy.close()
        self.api.close()
        self.broker.close()
        self.store.close()

    def is_ready(self) -> bool:
        """Whether the API answers and reaches the server."""
        try:
            return self.api.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    # -- processes ------------------------------------------------------------------------------------

    def keep_running(self) -> None:
        """Starts what does not run, and notes how big the append-only file is. Call it often."""
        for name in ("server", *MODULES):
            process = self.processes.get(name)
            if process is not None and process.poll() is not None and process.pid not in self._ended:
                self._ended.add(process.pid)
                self._note_exit(name, process)
            if name not in self._resting and (process is None or process.poll() is not None):
                self._start(name)
        moment = time.monotonic()
        for pid, ending in list(self._stopping.items()):
            if ending.is_late():
                del self._stopping[pid]
                self.exit_problems.append(
                    f"process {pid} did not end within {ENDING_CPU_SECONDS:.0f} s of its own work after SIGTERM"
                )
        for file in self.server_folder.glob("appendonlydir/*.incr.aof"):
            with suppress(FileNotFoundError):
                self.aof_sizes.append((moment, file, file.stat().st_size))
        del self.aof_sizes[:-200]

    def _note_exit(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if self._stopping.pop(process.pid, None) is not None:
            code = process.returncode
            # The API's server ends by the signal; so does a worker that is still importing, and has no task yet.
            if code != 0 and not (code == -signal.SIGTERM and (name == "api" or process.pid in self._young)):
                self.exit_problems.append(f"{name} ended with {code} after SIGTERM")
        elif process.returncode not in (0, -signal.SIGKILL) and name != "server":
            self.exit_problems.append(f"{name} ended with {process.returncode} by itself")

    def _start(self, name: str) -> None:
        self._started_at[name] = time.monotonic()
        if name == "server":
            self.processes[name] = self._run_server(self.server_folder, self.server_port)
        else:
            self.processes[name] = self._run(name, "-m", MODULES[name])

    def _run_server(self, folder: Path, port: int) -> subprocess.Popen[bytes]:
        return self._run("server", "-m", "synth_service.local.redis", str(folder), str(port))

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                tethered([sys.executable, *arguments], signal.SIGKILL),
                cwd=REPOSITORY,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to whatever runs under a name."""
        process = self.processes[name]
        if number == signal.SIGTERM and process.poll() is None:
            self._stopping[process.pid] = Ending(process.pid)
            if time.monotonic() - self._started_at[name] < START_SECONDS * slowness():
                self._young.add(process.pid)
        elif number == signal.SIGKILL:
            self._stopping.pop(process.pid, None)  # told to end a moment ago: it ends otherwise now
        process.send_signal(number)

    def rest(self, name: str) -> None:
        """From now on, leaves a process down once it is."""
        self._resting.add(name)

    def wake(self, name: str) -> None:
        """Starts a process again that was left down."""
        self._resting.discard(name)

    def replace(self, name: str) -> None:
        """Lets another process have the name of one that is frozen; see ``end_retired``."""
        process = self.processes.pop(name)
        self._stopping.pop(process.pid, None)  # told to end a moment ago: it cannot while it is frozen
        self._retired.append((name, process))

    def end_retired(self) -> None:
        """Ends those that were replaced, woken up by now, in good order."""
        for name, process in self._retired:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=30) != 0:
                self.exit_problems.append(f"{name}, woken up late, ended with {process.returncode}")
        self._retired.clear()

    # -- the server -----------------------------------------------------------------------------------

    def _connect(self) -> Broker:
        # The loop that asks also ends faults, so it must not wait long for an answer.
        url = f"redis://127.0.0.1:{self.server_port}"
        return Broker(url, lease_seconds=LEASE_SECONDS, retries=1, timeout_seconds=2.0)

    def server(self) -> Any:
        """A connection to the server itself, not through the proxy."""
        return self.broker.redis

    def promote_replica(self) -> None:
        """Makes a replica and hands over to it; the address still leads to the old server, which only reads now."""
        self._servers += 1
        port, folder = free_port(), self.folder / f"redis-{self._servers}"
        process = self._run_server(folder, port)
        self._promoted = (port, folder, process)
        with redis.Redis(port=port, decode_responses=True) as replica:
            wait_until(lambda: _answers(replica), timeout=20)
            replica.replicaof("127.0.0.1", str(self.server_port))
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", timeout=20)
            self.server().execute_command("FAILOVER", "TO", "127.0.0.1", port)
            wait_until(lambda: replica.info("replication")["role"] == "master", timeout=20)

    def follow_promotion(self) -> None:
        """The address leads to the promoted server; the old one is gone."""
        assert self._promoted is not None
        old = self.processes["server"]
        self.server_port, self.server_folder, self.processes["server"] = self._promoted
        self._promoted = None
        self.aof_sizes.clear()
        self.proxy.lead_to(self.server_port)
        old.kill()
        old.wait()
        self.broker.close()
        self.broker = self._connect()

    def stop_workers(self) -> list[str]:
        """Ends all but the server in good order; returns what went wrong."""
        self.keep_running()
        for name in MODULES:
            self.rest(name)
            self.signal(name, signal.SIGCONT)
            self.signal(name, signal.SIGTERM)
        names = list(MODULES)

        def ended() -> bool:
            self.keep_running()
            return all(self.processes[name].poll() is not None for name in names)

        wait_until(ended, timeout=30)
        self.keep_running()
        return self.exit_problems

    # -- logs -----------------------------------------------------------------------------------------

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """What the workers logged, where it is whole."""
        for file in (self.folder / "logs").glob("*.log"):
            for line in file.read_text(errors="replace").splitlines():
                with suppress(json.JSONDecodeError):
                    parsed = json.loads(line)
                    if isinstance(parsed, dict):
                        yield parsed

    def scratch_folders(self) -> list[Path]:
        """Local folders that processes left."""
        return sorted((self.folder / "tmp").glob("dfkd-*"))


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.RedisError:
        return False


def new_folder() -> Path:
    """A folder for one cluster."""
    return Path(tempfile.mkdtemp(prefix="chaos-"))
