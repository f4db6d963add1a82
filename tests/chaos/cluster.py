"""All processes of a deployment, each restarted as soon as it dies, on files that outlive them.

The server keeps an append-only file as ``dfkd up`` has it, and everybody reaches it through a proxy. The
storage is a small file system of its own where that is possible, so that it can be filled.
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

from shared.broker import Broker
from shared.storage import Storage
from synth_service.local.tethered import tethered
from tests.chaos.proxy import Proxy
from tests.conftest import free_port
from tests.e2e.service import DIGITS, REPOSITORY
from tests.waiting import wait_until

LEASE_SECONDS = 3.0
STORAGE_MEGABYTES = 512
MODULES = {
    "api": "synth_service.api",
    "synthesis-1": "synth_service.worker",
    "synthesis-2": "synth_service.worker",
    "distiller-1": "distiller.worker",
    "distiller-2": "distiller.worker",
}


class Cluster:
    """Server, proxy, API, two synthesis workers and two distillers. Use it as a context manager.

    Args:
        folder: for everything that the processes write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.exit_problems: list[str] = []
        self.server_port = free_port()
        self.aof_sizes: list[tuple[float, Path, int]] = []
        self._resting: set[str] = set()
        self._stopping: dict[int, float] = {}
        self._ended: set[int] = set()
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self.has_own_disk = self._mount()
        self.storage = Storage(str(self.disk / "storage"))
        for name in ("tmp", "logs", "redis"):
            (folder / name).mkdir()
        for file in DIGITS.iterdir():
            self.storage.put_file(file, f"digits/{file.name}")

    def _mount(self) -> bool:
        """A small file system for the storage; only root can."""
        size = f"size={STORAGE_MEGABYTES}m"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.disk)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def __enter__(self) -> Cluster:
        self.proxy = Proxy(self.server_port)
        self.broker = Broker(f"redis://127.0.0.1:{self.server_port}", lease_seconds=LEASE_SECONDS, retries=20)
        api_port = free_port()
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{api_port}", timeout=10)
        self._environment = {
            **os.environ,
            "REDIS_URL": f"redis://127.0.0.1:{self.proxy.port}",
            "DFKD_STORAGE": self.storage.root,
            "DFKD_PORT": str(api_port),
            "DFKD_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "DFKD_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
            # Real machines are not killed every few seconds, nor real disks damaged.
            "DFKD_MAX_ATTEMPTS": "30",
            "DFKD_MAX_DAMAGED_SHARDS": "1000",
            "DFKD_LOG_FORMAT": "json",
            "TMPDIR": str(self.folder / "tmp"),
        }
        self.keep_running()
        wait_until(self.is_ready, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.proxy.close()
        self.api.close()
        self.broker.close()
        if self.has_own_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)

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
        for pid, deadline in self._stopping.items():
            if moment > deadline:
                self.exit_problems.append(f"process {pid} did not end within 10 s of SIGTERM")
        self._stopping = {pid: deadline for pid, deadline in self._stopping.items() if moment <= deadline}
        for file in (self.folder / "redis").glob("appendonlydir/*.incr.aof"):
            with suppress(FileNotFoundError):
                self.aof_sizes.append((moment, file, file.stat().st_size))
        del self.aof_sizes[:-200]

    def _note_exit(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if self._stopping.pop(process.pid, None) is not None:
            code = process.returncode
            if code != 0 and not (name == "api" and code == -signal.SIGTERM):
                self.exit_problems.append(f"{name} ended with {code} after SIGTERM")
        elif process.returncode not in (0, -signal.SIGKILL) and name != "server":
            self.exit_problems.append(f"{name} ended with {process.returncode} by itself")

    def _start(self, name: str) -> None:
        if name == "server":
            arguments = ["-m", "synth_service.local.redis", str(self.folder / "redis"), str(self.server_port)]
        else:
            arguments = ["-m", MODULES[name]]
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
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
            self._stopping[process.pid] = time.monotonic() + 10
        process.send_signal(number)

    def rest(self, name: str) -> None:
        """From now on, leaves a process down once it is."""
        self._resting.add(name)

    def wake(self, name: str) -> None:
        """Starts a process again that was left down."""
        self._resting.discard(name)

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


def new_folder() -> Path:
    """A folder for one cluster."""
    return Path(tempfile.mkdtemp(prefix="chaos-"))
