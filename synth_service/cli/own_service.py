"""A service that runs as long as one command does: `dfkd demo` and `dfkd run` start it, use it and stop it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer
from rich.markup import escape

from synth_service.cli.outcomes import ExitCode, connected, dashboard_page, fail, messages
from synth_service.cli.running import report
from synth_service.client import Client
from synth_service.local.redis import LOOPBACK
from synth_service.local.service import CannotStart, Interrupted, LocalService, StopSignals
from synth_service.local.supervisor import CannotKeepRunning


@contextmanager
def own_service(
    *, storage: str, redis_url: str | None, redis_folder: Path, port: int, log: TextIO, when_interrupted: str
) -> Iterator[Client]:
    """A client of a service that is stopped at the end; whatever keeps it from running ends the command.

    Args:
        storage: root of the storage.
        redis_url: server to use; None starts one.
        redis_folder: where the own server keeps its data.
        port: of the API; 0 takes a free one.
        log: gets what the processes write.
        when_interrupted: what to say after Ctrl-C.
    """
    with StopSignals() as signals:
        service = LocalService(
            storage=storage,
            redis_url=redis_url,
            redis_folder=redis_folder,
            host=LOOPBACK,
            port=port,
            synth_workers=1,
            distillers=1,
            signals=signals,
            on_output=lambda name, line: print(f"{name:>12} {line}", file=log),
            on_event=lambda text: messages.print(f"[yellow]{escape(text)}[/]"),
        )
        try:
            messages.print("starting the server, the API, a synthesis worker and a distiller …")
            with service, connected(service.url, sleep=service.pause) as client:
                service.wait_until_ready()
                messages.print(f"the API listens on {service.url}; the dashboard is at {dashboard_page(service.url)}")
                yield client
        except Interrupted:
            messages.print(when_interrupted)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except CannotStart as error:
            fail(f"{error}; the log is {log.name}")
        except CannotKeepRunning as error:
            report(error)
