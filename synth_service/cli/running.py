"""`dfkd up`: the service in the foreground."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.markup import escape

from shared.settings import Settings
from synth_service.cli.outcomes import ExitCode, dashboard_page, fail, messages
from synth_service.local.redis import FolderInUse, lock_folder
from synth_service.local.service import CannotStart, Interrupted, LocalService, StopSignals
from synth_service.local.supervisor import CannotKeepRunning


def run_service(
    *,
    host: str | None,
    port: int | None,
    synth_workers: int | None,
    distillers: int,
    devices: str | None,
    storage: str | None,
) -> None:
    """Runs the service until a signal arrives, and ends the command: 0 after SIGTERM, 130 after Ctrl-C."""
    settings = read_settings()
    chosen = devices_of(devices)
    if synth_workers is None:
        synth_workers = max(1, len(chosen) - distillers)
    storage = _absolute(storage or settings.storage)
    with StopSignals() as signals:
        service = LocalService(
            storage=storage,
            redis_url=settings.redis_url,
            redis_folder=redis_folder(storage, settings.state_folder),
            host=settings.host if host is None else host,
            port=settings.port if port is None else port,
            synth_workers=synth_workers,
            distillers=distillers,
            devices=chosen,
            signals=signals,
            on_output=lambda name, line: _say(f"[cyan]{name:>12}[/] {escape(line)}"),
            on_event=lambda text: _say(f"[yellow]{escape(text)}[/]"),
        )
        try:
            with service:
                service.wait_until_ready()
                _announce(service, storage)
                while True:
                    service.pause(60.0)
        except Interrupted as interruption:
            _say("everything is stopped; unfinished jobs resume at the next `dfkd up`")
            is_keyboard = interruption.number is signal.SIGINT
            raise typer.Exit(ExitCode.INTERRUPTED if is_keyboard else ExitCode.DONE) from None
        except CannotStart as error:
            fail(str(error), ExitCode.USAGE)
        except CannotKeepRunning as error:
            report(error)


def devices_of(written: str | None) -> list[str]:
    """What ``--devices`` means, as ``DFKD_DEVICE`` takes it. Ends the command when it means nothing."""
    if written is None:
        return []
    if written == "all":
        count = _gpus()
        if count == 0:
            fail("--devices is all, but this machine has no usable GPU; `dfkd doctor` says why", ExitCode.USAGE)
        return [f"cuda:{number}" for number in range(count)]
    numbers = [part.strip() for part in written.split(",")]
    if not all(part.isdecimal() for part in numbers):
        fail(f"--devices is {written}; give numbers of GPUs such as 0,1 or all", ExitCode.USAGE)
    return [f"cuda:{int(part)}" for part in numbers]


def _gpus() -> int:
    import torch  # on demand: a second that nobody else need wait

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _say(text: str) -> None:
    """Prints, and goes on where that is impossible: whoever read the output (``| head``) may have left."""
    with suppress(OSError, ValueError, SystemExit):  # the last is Rich's answer to a broken pipe
        messages.print(text)


def report(error: CannotKeepRunning) -> None:
    """Ends the command with the last words of the program that could not be kept alive."""
    for line in error.lines:
        messages.print(f"[cyan]{error.program.name:>12}[/] {escape(line)}")
    fail(f"{error}; its last lines are above", ExitCode.USAGE if error.is_misconfigured else ExitCode.FAILED)


def read_settings() -> Settings:
    """The settings of the environment; a wrong one ends the command."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"environment variable for {'.'.join(map(str, first['loc']))}: {first['msg']}", ExitCode.USAGE)


def redis_folder(storage: str, state_folder: Path | None = None) -> Path:
    """Where the embedded server of a storage keeps its data, which is for nobody else to read.

    Beside the storage and not in it: what lies under the storage root can be named by jobs, and is shared and served.
    Data of before, which did lie there, is moved.

    Args:
        storage: root of the storage, absolute if it is a folder.
        state_folder: where the operator wants such data; None for ``NAME.private`` beside the storage.
    """
    if "://" in storage:
        folder = state_folder or Path("dfkd-data.private").absolute()
        return folder / f"redis-{hashlib.sha256(storage.encode()).hexdigest()[:12]}"
    root = Path(storage)
    folder = (state_folder or root.with_name(f"{root.name}.private")) / "redis"
    former = root / "redis"
    if (former / "lock").is_file() and not folder.exists():
        try:
            os.close(lock_folder(former))
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.move(former, folder)
        except FolderInUse:
            return former  # of another `dfkd up`, which the caller is going to be told
        except OSError as error:
            fail(f"cannot move the server's data from {former} to {folder}: {error}; set DFKD_STATE_FOLDER")
    return folder


def _absolute(storage: str) -> str:
    return storage if "://" in storage else str(Path(storage).expanduser().absolute())


def _announce(service: LocalService, storage: str) -> None:
    """Tells how to use the service."""
    is_default = service.url == "http://127.0.0.1:8000"
    address = "" if is_default else f" --url {service.url}"
    _say(f"[bold green]ready[/]: the API listens on [bold]{service.url}[/], files are in {escape(storage)}")
    _say(f"the dashboard is at [bold]{dashboard_page(service.url)}[/]")
    _say(f"submit a job with: [bold]dfkd submit job.yaml --watch{address}[/]   (Ctrl-C here stops everything)")
