"""How commands end: exit codes that scripts can rely on, and errors as one clear message on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.client import ApiError, Client, DamagedDownload, ServerUnreachable

output = Console(highlight=False, soft_wrap=True)
"""What was asked for."""

messages = Console(stderr=True, highlight=False, soft_wrap=True)
"""Everything else, so that ``--json`` leaves nothing but JSON on stdout."""


class ExitCode(IntEnum):
    """Exit codes of `dfkd`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


def fail(message: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Ends the command with a message."""
    messages.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def print_json(value: BaseModel | dict[str, Any]) -> None:
    """One line of JSON on stdout, never wrapped or coloured."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A client of the API at ``url``; whatever goes wrong between it and the API ends the command."""
    try:
        client = Client(url)
    except ValueError as error:
        fail(str(error), ExitCode.USAGE)
    with client:
        try:
            yield client
        except ServerUnreachable as error:
            fail(f"{error}; start the service with `dfkd up` or name it with --url", ExitCode.UNREACHABLE)
        except ApiError as error:
            refuse(error)
        except DamagedDownload as error:
            fail(f"{error}; fetch it again")
        except OSError as error:
            fail(f"{error.filename or 'file'}: {error.strerror or error}")
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None


def refuse(error: ApiError) -> NoReturn:
    """Ends the command with what the API objected to: a table where fields are to blame."""
    if error.errors:
        table = Table("field", "message", title=f"the service refused this ({error.code})", title_justify="left")
        for each in error.errors:
            table.add_row(escape(each.field or "(whole request)"), escape(each.message))
        messages.print(table)
    else:
        messages.print(f"[bold red]error:[/] {escape(str(error))} [dim]({error.code})[/]")
    if error.hint:
        messages.print(f"[dim]{escape(error.hint)}[/]")
    is_usage = error.status in (400, 404, 413, 415, 422)
    raise typer.Exit(ExitCode.USAGE if is_usage else ExitCode.FAILED)
