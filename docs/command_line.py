"""Writes docs/command-line.md from the commands themselves.

Run ``python docs/command_line.py`` after a change of ``synth_service/cli``; a test compares.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from typer.main import get_command

from synth_service.cli import app
from synth_service.cli.lazy_commands import COMMANDS

PAGE = Path(__file__).with_name("command-line.md")


def page() -> str:
    """The page."""
    group: Any = get_command(app)
    sections = [
        "# Command line",
        "<!-- Written by docs/command_line.py from synth_service/cli; do not edit. -->",
        "`dfkd COMMAND --help` shows the same. Commands that take a JOB understand its id, the beginning of it, its "
        "name, or `last`. `--json` prints JSON on stdout and nothing else. Without a terminal, lists are cells between "
        "tabs.",
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 service unreachable, 130 interrupted (the job continues).",
    ]
    sections += [_section(name, group.load(name)) for name in COMMANDS]
    return "\n\n".join(sections) + "\n"


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    usage = " ".join(["dfkd", name, *(str(each.metavar or each.name.upper()) for each in arguments), "[OPTIONS]"])
    rows = [(f"`{each.metavar or each.name.upper()}`", each.help or "") for each in arguments]
    rows += [(_option(each), each.help or "") for each in options]
    lines = [f"## {name}", "", inspect.cleandoc(command.help or ""), "", f"```text\n{usage}\n```"]
    if rows:
        lines += ["", "| argument or option | |", "| --- | --- |"]
        lines += [f"| {left} | {right.replace('|', '&#124;')} |" for left, right in rows]
    return "\n".join(lines)


def _option(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or 'VALUE'}"
    return ", ".join(f"`{each}{value}`" for each in option.opts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
