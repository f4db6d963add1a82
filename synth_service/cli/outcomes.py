"""How commands end: exit codes that scripts can rely on, and errors as one clear message on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, NoReturn, TypeVar

import typer
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from shared.errors import UserError
from shared.text import visible, visible_json
from synth_service.client import (
    ApiError,
    Client,
    DamagedDownload,
    DamagedUpload,
    FieldError,
    Retry,
    ServerUnreachable,
    UnexpectedAnswer,
)
from synth_service.client.terminal import Terminal

Item = TypeVar("Item", bound=BaseModel)

RETRIES: Final = 2
TOLD_FROM_SECONDS: Final = 1.5
"""Shorter pauses before another try are not worth a line."""

UNAUTHORIZED: Final = 401

output = Terminal(highlight=False, soft_wrap=True)
"""What was asked for."""

messages = Terminal(stderr=True, highlight=False, soft_wrap=True)
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


def print_json(value: BaseModel | dict[str, Any] | Sequence[BaseModel]) -> None:
    """One line of JSON on stdout, never wrapped or colored."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json()
    elif isinstance(value, dict):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = f"[{','.join(each.model_dump_json() for each in value)}]"
    if not _holds(sys.stdout.encoding, text):
        text = json.dumps(json.loads(text))  # the same, in ASCII
    sys.stdout.write(visible_json(text) + "\n")
    sys.stdout.flush()


def _holds(encoding: str | None, text: str) -> bool:
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def show(table: Table, console: Terminal = output) -> None:
    """A table on a terminal. Elsewhere one line for each row, whole, its cells apart by tabs: for grep, cut and awk."""
    if console.is_terminal:
        console.print(table)
        return
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    for row in zip(*columns, strict=True):
        console.file.write("\t".join(row) + "\n")  # Rich would expand the tabs


def show_listing(found: Sequence[Item], table: Callable[[Sequence[Item]], Table], none: str, *, as_json: bool) -> None:
    """How a command that lists things ends: with JSON, a table, or a word that there are none."""
    if as_json:
        print_json(found)
    elif found:
        show(table(found))
    else:
        messages.print(none)


def show_removal(name: str, done: str, fields: dict[str, Any], *, as_json: bool) -> None:
    """How a command that took something away ends: `NAME deleted`, or JSON that says the same.

    Args:
        name: of what is gone.
        done: `deleted`, `revoked`.
        fields: what names it, in JSON.
    """
    if as_json:
        print_json({**fields, done: True})
    else:
        output.print(f"{name} {done}")


def _plain(cell: object) -> str:
    text = Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)
    return visible(" ".join(text.split()))


def dashboard_page(url: str, job_id: str = "") -> str:
    """Where people look at the service, or at one job, in a browser."""
    return f"{url.rstrip('/')}/ui/jobs/{job_id}" if job_id else f"{url.rstrip('/')}/"


@contextmanager
def connected(url: str, api_key: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Client]:
    """A client of the API at ``url``; whatever goes wrong between it and the API ends the command."""
    try:
        client = Client(url, api_key, retries=RETRIES, on_retry=_tell_of_retry, sleep=sleep)
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
        except DamagedUpload as error:
            fail(f"{error}; send it again")
        except UnexpectedAnswer as error:
            fail(str(error), ExitCode.UNREACHABLE)
        except UserError as error:
            fail(f"{error.message} ({error.code})")
        except OSError as error:
            fail(f"{error.filename or 'file'}: {error.strerror or error}")
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None


def _tell_of_retry(retry: Retry) -> None:
    if retry.delay_seconds >= TOLD_FROM_SECONDS:
        messages.print(f"[yellow]{escape(str(retry.failure))}; trying again in {retry.delay_seconds:.0f} s[/]")


def show_field_errors(title: str, errors: Sequence[FieldError]) -> None:
    """Tells on stderr what is wrong with which field."""
    table = Table("field", "message", box=None, pad_edge=False)
    for each in errors:
        table.add_row(escape(each.field or "(whole request)"), escape(each.message))
    messages.print(f"[bold red]error:[/] {escape(title)}")
    show(table, messages)


def refuse(error: ApiError) -> NoReturn:
    """Ends the command with what the API objected to: a table where fields are to blame."""
    if error.errors:
        show_field_errors(f"the service refused this ({error.code})", error.errors)
    else:
        messages.print(f"[bold red]error:[/] {escape(str(error))} [dim]({error.code})[/]")
    if error.status == UNAUTHORIZED:
        messages.print("[dim]give the key with --api-key or DFKD_API_KEY[/]")
    elif error.hint:
        messages.print(f"[dim]{escape(error.hint)}[/]")
    is_usage = error.status in (400, UNAUTHORIZED, 403, 404, 413, 415, 422)
    raise typer.Exit(ExitCode.USAGE if is_usage else ExitCode.FAILED)
