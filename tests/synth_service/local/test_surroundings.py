"""`dfkd up` in the places where people start it: behind `nohup`, piped into `head`, on `::`, in a folder with code."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from synth_service.client import Client
from synth_service.local.service import Interrupted, StopSignals
from tests.conftest import free_port
from tests.synth_service.api_process import answers, clean_environment
from tests.synth_service.local.test_service import spec
from tests.waiting import wait_until

UP = [sys.executable, "-P", "-c", "from synth_service.cli import main; main()", "up", "--distillers", "0"]


@contextmanager
def up(storage: Path, port: int, *options: str, **how: object) -> Iterator["subprocess.Popen[str]"]:
    """A `dfkd up` whose messages can be read from its `stderr`."""
    command = [*UP, "--storage", str(storage), "--port", str(port), "--synth-workers", "0", *options]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(**how.pop("environment", {})),  # type: ignore[arg-type]
        **how,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
            process.wait()
            if not process.stderr.closed:
                process.stderr.close()


def read_until_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "submit a job" in line:
            return
    pytest.fail("it never became ready")


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGINT)
            signals.check()
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(Interrupted):
                signals.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_nohup_started_outlives_the_terminal(tmp_path: Path) -> None:
    port = free_port()
    command = [*UP, "--storage", str(tmp_path / "storage"), "--port", str(port), "--synth-workers", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(["nohup", *command], stdout=log, stderr=log, env=clean_environment())
    try:
        wait_until(lambda: "submit a job" in (tmp_path / "log").read_text(), timeout=60)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        assert answers(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_the_service_goes_on_when_the_reader_of_its_log_leaves(tmp_path: Path) -> None:
    storage, port = tmp_path / "storage", free_port()
    with up(storage, port) as process:
        read_until_ready(process)
        assert process.stderr is not None
        process.stderr.close()
        with Client(f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                job = client.jobs.create(spec(storage))
                client.jobs.cancel(job.id)
                client.jobs.delete(job.id)
                assert httpx.delete(f"http://127.0.0.1:{port}/jobs/{job.id}", trust_env=False).status_code == 404
        assert process.poll() is None


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_on_every_address_of_both_kinds_it_becomes_ready(tmp_path: Path) -> None:
    port = free_port()
    with up(tmp_path / "storage", port, "--host", "::", environment={"DFKD_ALLOW_UNAUTHENTICATED": "true"}) as process:
        read_until_ready(process)
        assert answers(f"http://[::1]:{port}")
        assert answers(f"http://127.0.0.1:{port}")


def test_no_code_of_the_current_folder_runs(tmp_path: Path) -> None:
    folder, port = tmp_path / "folder", free_port()
    folder.mkdir()
    for name in ("http.py", "shared.py", "redis.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    with up(tmp_path / "storage", port, "--synth-workers", "1", cwd=folder) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "worker_started" in line:
                break
        assert answers(f"http://127.0.0.1:{port}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_allowed", [False, True])
def test_factories_of_the_current_folder_are_there_where_factories_are_allowed(
    tmp_path: Path, redis_url: str, is_allowed: bool
) -> None:
    (tmp_path / "mynets.py").write_text("")
    (tmp_path / "http.py").write_text("raise SystemExit('took the place of a module')")
    program = (
        "import importlib.util, http.client, shared.worker.process as process; from shared.jobs import Role;"
        "process.Worker.run = lambda _: print(importlib.util.find_spec('mynets') is not None);"
        "process.run_worker(Role.SYNTHESIS, print)"
    )
    settings = {"DFKD_ALLOWED_FACTORIES": "mynets" if is_allowed else "", "REDIS_URL": redis_url}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=clean_environment(**settings),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.strip(), done.returncode) == (str(is_allowed), 0), done.stderr


def test_an_empty_variable_is_as_good_as_none(tmp_path: Path) -> None:
    names = ("PORT", "THREADS", "LEASE_SECONDS", "LOG_LEVEL", "OWN_JOBS_ONLY", "REDIS_URL", "API_KEYS", "CACHE_FOLDER")
    program = (
        "from shared.settings import Settings; assert Settings() == Settings.model_construct() or print(Settings())"
    )
    environment = clean_environment(**{f"DFKD_{name}": "" for name in names}, REDIS_URL="")
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_a_terminal_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: \U0001f600 Übung\nstudent: {arch: resnet8}\n"
        "teacher: {arch: resnet8, checkpoint: t.pt, num_classes: 10}\n",
        encoding="utf-8",
    )
    environment = clean_environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    program = [sys.executable, "-c", "from synth_service.cli import main; main()", "validate", "--offline"]
    for options, given in (([str(path)], None), (["-", "--json"], path.read_bytes()), (["--help"], None)):
        done = subprocess.run([*program, *options], env=environment, input=given, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        if "--json" in options:
            assert b"\\ud83d\\ude00" in done.stdout  # the same text, escaped
