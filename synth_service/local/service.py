"""The whole service on one machine: server, API and workers, as `dfkd up` and `dfkd demo` run it.

Which processes there are and what each is told; how they are kept alive is ``synth_service.local.supervisor``.
They are the same programs that a deployment over many machines starts by itself, told the same settings
through the environment.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

import httpx

from shared.extras import MissingExtra, require
from synth_service.local.redis import LOOPBACK, NO_SERVER, FolderInUse, answers, free_port, lock_folder, server_program
from synth_service.local.supervisor import Program, Supervisor

_TICK_SECONDS: Final = 0.1
WORKER_NICENESS: Final = 10
"""Workers take every cycle that is left over, but the API and the server answer first: a poll waits for neither."""

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "DFKD_THREADS")


class CannotStart(Exception):
    """The service cannot run as asked; the message names the remedy."""


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = signal.Signals(number)


class StopSignals:
    """Notes the signals that ask a program to end, for a loop to act on where it is safe to stop.

    A context manager; the handlers of before come back at its end. The first signal asks to stop in good
    order, a second one to hurry. What whoever started this process has it ignore (``nohup``: SIGHUP, a shell's ``&``:
    SIGINT) stays ignored.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)

    def check(self) -> None:
        """Raises Interrupted once a signal arrived."""
        if self._received:
            raise Interrupted(self._received[0])

    def is_urgent(self) -> bool:
        """Whether more than one signal arrived."""
        return len(self._received) > 1


def available_cores() -> int:
    """Cores that this process may use: those of its affinity mask, or fewer where its control group has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        with suppress(OSError, ValueError, ZeroDivisionError):
            text = Path(quota_file).read_text() + (" " + Path(period_file).read_text() if period_file else "")
            quota, period = (float(word) for word in text.split())  # "max" is no number, -1 no limit
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return max(cores, 1)


def check_can_listen(host: str, port: int) -> None:
    """Raises CannotStart when a server could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        remedy = "choose another with --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "see --host"
        raise CannotStart(f"cannot listen on {host}:{port} ({error.strerror or error}); {remedy}") from None


class LocalService:
    """The running service; a context manager that starts it and leaves nothing behind.

    Args:
        storage: root of the storage.
        redis_url: server to use; None starts one.
        redis_folder: where the own server keeps its data.
        host, port: where the API listens; port 0 picks a free one.
        synth_workers, distillers: processes of each kind.
        devices: what ``DFKD_DEVICE`` each worker gets, in turn: first those that make images, then the distillers.
            None for what the environment says.
        signals: asked while waiting, so that a signal ends whatever is being waited for.
        on_output, on_event: as for ``Supervisor``.
        settings: further environment variables for every process.

    Raises:
        CannotStart: on entering.
    """

    def __init__(
        self,
        *,
        storage: str,
        redis_url: str | None,
        redis_folder: Path,
        host: str,
        port: int,
        synth_workers: int,
        distillers: int,
        devices: Sequence[str] = (),
        signals: StopSignals,
        on_output: Callable[[str, str], None],
        on_event: Callable[[str], None],
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._redis_url = redis_url
        self._redis_folder = redis_folder
        self._host, self._port = host, port
        self._synth_workers, self._distillers = synth_workers, distillers
        self._devices = tuple(devices)
        self._signals = signals
        self._settings = {"DFKD_STORAGE": storage, "PYTHONUNBUFFERED": "1", **(settings or {})}
        self.supervisor = Supervisor(on_output=on_output, on_event=on_event)
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the API."""
        # An address that stands for all of its kind is none to connect to.
        host = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(self._host, self._host)  # noqa: S104
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def __enter__(self) -> LocalService:
        if self._port == 0:
            self._port = free_port(self._host)
        check_can_listen(self._host, self._port)
        try:
            require("the service", ["api", *(["worker"] if self._synth_workers or self._distillers else [])])
        except MissingExtra as error:
            raise CannotStart(str(error)) from None
        try:
            redis_url = self._redis_url or self._start_redis()
            self._start_programs({**self._settings, "DFKD_REDIS_URL": redis_url})
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the workers, which give their tasks back, then the API, then the server."""
        self.supervisor.stop(self._signals.is_urgent)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def pause(self, seconds: float) -> None:
        """Waits and keeps the processes alive meanwhile; 0 looks once.

        Raises:
            Interrupted: a signal arrived.
            CannotKeepRunning: a process cannot be kept alive.
        """
        until = time.monotonic() + seconds
        while True:
            self._signals.check()
            self.supervisor.check()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _TICK_SECONDS))

    def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Returns once the API answers that it, the server and the storage are there.

        Raises:
            CannotStart: not within the time; the message is the API's own reason where it gave one.
            Interrupted, CannotKeepRunning: as ``pause``.
        """
        reason = "the API does not answer"

        def is_ready() -> bool:
            nonlocal reason
            try:
                answer = client.get("/readyz")
            except httpx.TransportError:
                return False
            reason = f"the API answers {answer.status_code}: {answer.text[:500]}"
            return answer.status_code == httpx.codes.OK

        with httpx.Client(base_url=self.url, timeout=5.0, trust_env=False) as client:
            self._wait_for(is_ready, timeout_seconds, lambda: f"not ready after {timeout_seconds:g} s: {reason}")

    def _wait_for(self, condition: Callable[[], bool], timeout_seconds: float, complaint: Callable[[], str]) -> None:
        until = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > until:
                raise CannotStart(complaint())
            self.pause(_TICK_SECONDS)

    def _start_redis(self) -> str:
        if server_program() is None:
            raise CannotStart(NO_SERVER)
        try:
            self._lock = lock_folder(self._redis_folder)
        except FolderInUse:
            raise CannotStart(
                f"another `dfkd up` is running on this storage ({self._redis_folder} is in use); "
                "stop it, choose another with --storage, or set REDIS_URL for both"
            ) from None
        except OSError as error:
            raise CannotStart(
                f"cannot keep the server's data in {self._redis_folder}: {error.strerror}; choose another folder with "
                "DFKD_STATE_FOLDER"
            ) from None
        port = free_port()
        self.supervisor.start(
            Program(
                "redis",
                _module("synth_service.local.redis", str(self._redis_folder), str(port)),
                # It may close its files in good order even if the supervisor was killed.
                death_signal=signal.SIGTERM,
                inherited_files=(self._lock,),
            )
        )
        # Reading back a large append-only file takes its time.
        self._wait_for(lambda: answers(port), 120.0, lambda: "the embedded server does not answer")
        return f"redis://{LOOPBACK}:{port}/0"

    def _start_programs(self, settings: Mapping[str, str]) -> None:
        threads = max(1, available_cores() // max(1, self._synth_workers + self._distillers))
        listening = {"DFKD_HOST": self._host, "DFKD_PORT": str(self._port)}
        self.supervisor.start(
            Program(
                "api",
                _module("synth_service.api"),
                {**settings, **_with_threads(1), **listening},
                grace_seconds=5.0,
            )
        )
        environment = {**settings, **_with_threads(threads)}
        roles = [("synth", "synth_service.worker", self._synth_workers)]
        roles += [("distiller", "distiller.worker", self._distillers)]
        workers = [(f"{name}-{n}", module) for name, module, count in roles for n in range(1, count + 1)]
        self.supervisor.start(
            *(
                Program(name, _module(module), environment | self._device(place), niceness=WORKER_NICENESS)
                for place, (name, module) in enumerate(workers)
            )
        )

    def _device(self, place: int) -> dict[str, str]:
        """The device of a worker by its place among all."""
        return {"DFKD_DEVICE": self._devices[place % len(self._devices)]} if self._devices else {}


def _module(name: str, *arguments: str) -> Sequence[str]:
    """Runs a module of the installed package. Without -P, one of its name in the current folder would run instead."""
    return [sys.executable, "-P", "-m", name, *arguments]


def _with_threads(count: int) -> dict[str, str]:
    """Processes that together have more threads than there are cores slow each other down."""
    return dict.fromkeys(_THREAD_VARIABLES, str(count))
