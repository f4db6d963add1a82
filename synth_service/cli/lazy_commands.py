"""Commands that are imported when they run: `dfkd --help` shows their names and first lines without them.

Most of a command's start is the import of pydantic, of the job's specification and of the HTTP client, for which the
list of commands has no use. A test holds the first lines against the docstrings.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

PACKAGE: Final = "synth_service.cli"

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "up": ("service_commands", "Run the whole service here until Ctrl-C."),
    "demo": (
        "service_commands",
        "Distil a network that reads digits, without a digit: the whole service, started, used and stopped.",
    ),
    "run": (
        "service_commands",
        "Distil a teacher in one go: upload, submit, follow and fetch. Starts a service for that where none runs.",
    ),
    "init": ("service_commands", "Write a job file for your own network. Ask for what its checkpoint does not tell."),
    "doctor": ("service_commands", "Check everything that the service needs here; exit code 1 if something is broken."),
    "validate": ("job_commands", "Check a job without starting it, and print its size: images, bytes, steps."),
    "estimate": (
        "time_estimate",
        "Tell how long a job takes on this machine and how much memory, after a few of its steps.",
    ),
    "submit": ("job_commands", "Start a job."),
    "watch": ("job_commands", "Follow a job to its end. Ctrl-C stops watching, and the job continues."),
    "logs": ("job_commands", "Show the events of a job."),
    "jobs": ("job_commands", "List jobs, newest first."),
    "job": ("job_commands", "Show one job."),
    "cancel": ("job_commands", "Cancel a job. What it has made stays."),
    "retry": ("job_commands", "Resume a job that failed or was cancelled from its last checkpoints."),
    "fetch": (
        "job_commands",
        "Download what a job has made: shards, each checked, student, index, dataset card and picture grid.",
    ),
    "push": (
        "hub_commands",
        "Push what a job has made to the Hugging Face hub: its dataset, or with --student its student. Prints the URL.",
    ),
    "delete": (
        "job_commands",
        "Remove a finished job with its shards, its student and its history. Asks first on a terminal.",
    ),
    "upload": ("service_commands", "Upload a checkpoint, and print the name that a job uses for it."),
    "models": ("service_commands", "List uploaded checkpoints, newest first."),
    "workers": ("service_commands", "List the workers that reported within the last minute."),
    "key": ("key_commands", "Make an API key: the key for its owner, and what the service must know of it."),
    "keys": ("key_commands", "List the API keys that the service accepts now. Needs a key with the scope admin."),
}
"""By name: the module with the function of that name, and the first line of its help."""


class LazyGroup(TyperGroup):
    """The commands of ``COMMANDS``, each imported when it is the one to run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What a list of commands shows of one, or the command itself once it is loaded; None for an unknown name."""
        if cmd_name in self.commands or cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1], rich_markup_mode="rich")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to run, or to complete, loaded."""
        if args and args[0] in COMMANDS:
            self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> Any:
        """The command itself, imported."""
        if name not in self.commands:
            function = getattr(import_module(f"{PACKAGE}.{COMMANDS[name][0]}"), name)
            # An application with one command is that command.
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
            alone.command(name)(function)
            self.commands[name] = typer.main.get_command(alone)
        return self.commands[name]
