"""Real processes, small ones: what the supervisor starts, restarts and leaves behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from synth_service.local.supervisor import CannotKeepRunning, Program, Supervisor
from tests.waiting import wait_until

FOREVER = "import time\nwhile True: time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n{FOREVER}"


def python(name: str, code: str, grace_seconds: float = 5.0) -> Program:
    return Program(name, [sys.executable, "-c", code], grace_seconds=grace_seconds)


class Heard:
    """Lines and events of a supervisor, as they come."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[str] = []


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def supervisor(heard: Heard) -> Iterator[Supervisor]:
    def note(name: str, line: str) -> None:
        heard.lines.append((name, line))

    with Supervisor(on_output=note, on_event=heard.events.append, most_quick_deaths=3) as supervisor:
        yield supervisor


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def giving_up(supervisor: Supervisor) -> CannotKeepRunning | None:
    try:
        supervisor.check()
    except CannotKeepRunning as error:
        return error
    return None


def test_a_process_that_is_killed_is_started_again(supervisor: Supervisor, heard: Heard) -> None:
    supervisor.start(python("worker", FOREVER))
    first = supervisor.pids()["worker"]
    os.kill(first, signal.SIGKILL)

    def another() -> bool:
        supervisor.check()
        return supervisor.pids().get("worker", first) != first

    wait_until(another)
    assert heard.events == ["worker was killed by SIGKILL; starting it again in 0.2 s"]


def test_a_process_that_keeps_dying_is_given_up_with_its_last_lines(supervisor: Supervisor, heard: Heard) -> None:
    supervisor.start(python("worker", "import sys; print('no such device'); sys.exit(7)"))
    error = wait_until(lambda: giving_up(supervisor))
    assert error is not None
    assert str(error) == "worker ended with code 7, 3 times in a row"
    assert error.lines == ["no such device"] * 3
    assert heard.lines == [("worker", "no such device")] * 3


def test_wrong_settings_are_not_tried_again(supervisor: Supervisor) -> None:
    supervisor.start(python("api", "import sys; sys.exit(2)"))
    error = wait_until(lambda: giving_up(supervisor))
    assert error is not None
    assert str(error) == "api ended with code 2"
    assert error.is_misconfigured


def test_later_groups_stop_before_earlier_ones(supervisor: Supervisor, heard: Heard) -> None:
    farewell = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit()))\n"
        "print('up', flush=True)\nwhile True: time.sleep(60)"
    )
    supervisor.start(python("server", farewell))
    supervisor.start(python("api", farewell))
    supervisor.start(python("worker", farewell))
    wait_until(lambda: len(heard.lines) == 3)
    supervisor.stop()
    assert [name for name, line in heard.lines if line == "bye"] == ["worker", "api", "server"]
    assert supervisor.pids() == {}


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(supervisor: Supervisor, heard: Heard) -> None:
    supervisor.start(python("worker", STUBBORN, grace_seconds=0.1))
    wait_until(lambda: heard.lines)
    pid = supervisor.pids()["worker"]
    supervisor.stop()
    assert is_gone(pid)
    assert heard.events == ["worker did not stop in time and is killed"]


def test_a_second_signal_makes_the_stop_urgent(supervisor: Supervisor, heard: Heard) -> None:
    supervisor.start(python("worker", STUBBORN, grace_seconds=3600))
    wait_until(lambda: heard.lines)
    supervisor.stop(is_urgent=lambda: True)
    assert supervisor.pids() == {}


def test_what_a_dead_process_leaves_in_its_group_is_ended_with_it(supervisor: Supervisor, heard: Heard) -> None:
    parent = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"print(child.pid, flush=True)\n{FOREVER}"
    )
    supervisor.start(python("worker", parent))
    wait_until(lambda: heard.lines)
    grandchild = int(heard.lines[0][1])
    os.kill(supervisor.pids()["worker"], signal.SIGKILL)

    def ended() -> bool:
        supervisor.check()
        return is_gone(grandchild)

    wait_until(ended)


def test_each_process_leads_a_session_so_that_ctrl_c_does_not_reach_it(supervisor: Supervisor) -> None:
    supervisor.start(python("worker", FOREVER))
    pid = supervisor.pids()["worker"]
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_a_process_yields_to_others_as_its_program_says(supervisor: Supervisor, heard: Heard) -> None:
    supervisor.start(Program("worker", [sys.executable, "-c", "import os; print(os.nice(0))"], niceness=7))
    wait_until(lambda: ("worker", str(min(os.nice(0) + 7, 19))) in heard.lines)


def test_output_longer_than_a_pipe_does_not_stop_a_process(supervisor: Supervisor, heard: Heard) -> None:
    supervisor.start(python("worker", f"for number in range(20000): print('line', number)\n{FOREVER}"))
    supervisor.start(python("last", f"print('up', flush=True)\n{FOREVER}"))
    wait_until(lambda: sum(name == "worker" for name, _ in heard.lines) > 15_000)


def test_programs_are_started_from_the_main_thread_only(supervisor: Supervisor) -> None:
    """Linux would end them with the thread."""
    errors: list[BaseException] = []

    def start() -> None:
        try:
            supervisor.start(python("worker", FOREVER))
        except AssertionError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
def test_processes_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "supervise.py"
    script.write_text(
        "import sys, time\n"
        "from synth_service.local.supervisor import Program, Supervisor\n"
        "supervisor = Supervisor(on_output=lambda name, line: print(name, line, flush=True), on_event=print)\n"
        f"for name in ('server', 'worker'): supervisor.start(Program(name, [sys.executable, '-c', {STUBBORN!r}]))\n"
        "while True: supervisor.check(); time.sleep(0.05)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        # Their first lines say that they have become the program, tether and all.
        assert {parent.stdout.readline(), parent.stdout.readline()} == {"server deaf\n", "worker deaf\n"}
        children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
        assert len(children) == 2
        parent.kill()
    wait_until(lambda: all(is_gone(pid) for pid in children))
