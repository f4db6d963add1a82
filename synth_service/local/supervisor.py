"""Keeps a group of processes running: starts them in order, restarts what dies, stops them in reverse order.

Everything happens in the caller's thread: ``check`` looks once at every process and has to be called often.
Three things keep orphans away. Each process leads a session of its own, so a terminal's Ctrl-C reaches the
supervisor alone, which then chooses the order; what a process leaves behind in its group is killed with it;
and the kernel ends them all if the supervisor itself is killed (``synth_service.local.tethered``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from synth_service.local.tethered import tethered

MISCONFIGURED = 2
"""Exit code with which all of our processes say that their settings cannot work."""

LINES_KEPT = 20
"""Last lines of output that are kept of each process, for the report on one that keeps dying."""


@dataclass(frozen=True)
class Program:
    """What to run.

    Args:
        name: for people and logs.
        command: program and arguments.
        environment: variables on top of the supervisor's own.
        grace_seconds: how long it may take after SIGTERM before it is killed.
        death_signal: what it receives when the supervisor was killed.
        inherited_files: file descriptors that stay open in it.
        niceness: how readily it yields the processor to others, 0 (no more than they do) to 19.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    inherited_files: tuple[int, ...] = ()
    niceness: int = 0


class CannotKeepRunning(Exception):
    """A program ends, and starting it again does not help.

    Attributes:
        program: the program.
        lines: the last that it wrote.
        is_misconfigured: it said itself that its settings cannot work.
    """

    def __init__(self, program: Program, ending: str, times: int, lines: Sequence[str]) -> None:
        super().__init__(f"{program.name} {ending}" + (f", {times} times in a row" if times > 1 else ""))
        self.program = program
        self.lines = list(lines)
        self.is_misconfigured = ending == _ended_with(MISCONFIGURED)


class Supervisor:
    """Runs programs until ``stop``; use it as a context manager.

    Args:
        on_output: called with a program's name and each line that it writes; from a thread per process.
        on_event: called with a line about a program that ended or was killed.
        healthy_seconds: a process that lived for this long counts as started well.
        most_quick_deaths: deaths before that, in a row, after which ``check`` gives up.
        longest_pause_seconds: upper limit of the pause before a restart, which doubles with each death.
    """

    def __init__(
        self,
        *,
        on_output: Callable[[str, str], None],
        on_event: Callable[[str], None],
        healthy_seconds: float = 10.0,
        most_quick_deaths: int = 8,
        longest_pause_seconds: float = 10.0,
    ) -> None:
        self._groups: list[list[_Process]] = []
        self._on_output = on_output
        self._on_event = on_event
        self._healthy_seconds = healthy_seconds
        self._most_quick_deaths = most_quick_deaths
        self._longest_pause_seconds = longest_pause_seconds

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *programs: Program) -> None:
        """Starts programs that belong together; later groups are stopped earlier. Call it in the main thread."""
        assert threading.current_thread() is threading.main_thread(), "see synth_service.local.tethered"
        group: list[_Process] = []
        self._groups.append(group)
        for program in programs:
            process = _Process(program, self._on_output)
            group.append(process)
            process.start()

    def pids(self) -> dict[str, int]:
        """Process ids of what runs right now, by program name."""
        return {each.program.name: each.pid for group in self._groups for each in group if each.pid is not None}

    def check(self) -> None:
        """Restarts programs that ended and whose pause is over.

        Raises:
            CannotKeepRunning: restarting one does not help.
        """
        for process in (process for group in self._groups for process in group):
            if process.pid is None:
                if time.monotonic() >= process.due_at:
                    process.start()
                continue
            ending = process.ending()
            if ending is None:
                continue
            is_quick = time.monotonic() - process.started_at < self._healthy_seconds
            process.quick_deaths = process.quick_deaths + 1 if is_quick else 1
            if ending == _ended_with(MISCONFIGURED) or process.quick_deaths >= self._most_quick_deaths:
                raise CannotKeepRunning(process.program, ending, process.quick_deaths, process.lines)
            pause = min(0.1 * 2.0**process.quick_deaths, self._longest_pause_seconds)
            process.due_at = time.monotonic() + pause
            self._on_event(f"{process.program.name} {ending}; starting it again in {pause:.1f} s")

    def stop(self, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """Ends everything, the last group first, and returns when no process is left.

        Args:
            is_urgent: asked again and again; once true, nobody is waited for any more.
        """
        while self._groups:
            group = self._groups[-1]
            asked_at = time.monotonic()
            for process in group:
                process.send(signal.SIGTERM)
            killed: set[str] = set()
            while running := [process for process in group if process.ending() is None]:
                for process in running:
                    is_late = time.monotonic() - asked_at > process.program.grace_seconds
                    if (is_late or is_urgent()) and process.program.name not in killed:
                        self._on_event(f"{process.program.name} did not stop in time and is killed")
                        process.kill()
                        killed.add(process.program.name)
                time.sleep(0.02)
            self._groups.pop()


class _Process:
    """One program and the process that runs it at the moment, if any."""

    def __init__(self, program: Program, on_output: Callable[[str, str], None]) -> None:
        self.program = program
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.quick_deaths = 0
        self.started_at = 0.0
        self.due_at = 0.0
        self._on_output = on_output
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None between an end that was noticed and the next start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 -- programs are ours, never a client's
            tethered(self.program.command, self.program.death_signal, self.program.niceness),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.program.environment},
            start_new_session=True,
            pass_fds=self.program.inherited_files,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def ending(self) -> str | None:
        """How the process ended; None while it runs. After an end the whole of its group is gone."""
        if self._process is None:
            return "is not running"
        code = self._process.poll()
        if code is None:
            return None
        # The leader is gone; whoever is left in its group has nobody to end it.
        self._signal_group(signal.SIGKILL)
        assert self._reader is not None
        self._reader.join(timeout=1.0)
        self._process = None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else _ended_with(code)

    def send(self, number: signal.Signals) -> None:
        """Signals the process itself, which knows best how to end its own children."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the process and everything in its group at once."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        assert self._process is not None
        # macOS answers EPERM instead of ESRCH for a group of which only a zombie is left.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self, output: IO[bytes]) -> None:
        """Takes the output away as it comes: a full pipe would stop the process."""
        with output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                self.lines.append(text)
                # Whatever happens to our own output, reading goes on: Rich answers a broken pipe with SystemExit.
                with suppress(Exception, SystemExit):
                    self._on_output(self.program.name, text)


def _ended_with(code: int) -> str:
    return f"ended with code {code}"
