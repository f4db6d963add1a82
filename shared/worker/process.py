"""Turning a work function into a worker process: settings, logs, device, connections."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

import psutil
import torch

from shared.broker import Broker
from shared.jobs import Role
from shared.logs import configure_logging
from shared.networks.devices import choose_device, describe_device, limit_threads
from shared.settings import Settings
from shared.storage import Storage
from shared.worker.loop import Worker
from shared.worker.memory import limit_memory
from shared.worker.turn import Turn


def run_worker(role: Role, work: Callable[[Turn], None]) -> None:
    """Runs a worker until SIGTERM or SIGINT. Exits with 2 when the settings cannot work."""
    settings = Settings()
    configure_logging(settings)
    if settings.redis_url is None:
        _give_up("REDIS_URL is not set. Give the address of a Redis or Valkey server, or start all with `dfkd up`.")
    if settings.allowed_factories:
        # Started with -P, a worker imports nothing from the folder it is in. Where factories are allowed they may be
        # there, and are looked for last, so that no file of that folder takes the place of a module.
        sys.path.append(os.getcwd())  # noqa: PTH109 -- a string
    limit_threads(settings.threads)
    try:
        device = choose_device(settings.device)
        limit_memory(device, settings.max_memory_bytes)
        broker = Broker(settings.redis_url, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)
        storage = Storage(settings.storage, create=False)  # the mount point of a volume that is away stays bare
    except ValueError as error:
        _give_up(str(error))
    if complaint := broker.complaint():
        _give_up(f"the server at REDIS_URL cannot be used: {complaint}")
    worker = Worker(
        role,
        work,
        broker=broker,
        storage=storage,
        settings=settings,
        describe=partial(describe_worker, device, psutil.Process()),
    )
    worker.run()
    broker.close()


def describe_worker(device: torch.device, process: psutil.Process) -> dict[str, str | float]:
    """What ``GET /workers`` tells of this process. Load is the mean since it was asked for last."""
    about = describe_device(device)
    described: dict[str, str | float] = {
        "device": about["device"],
        "device_name": about["name"],  # `name` is the worker's own
        "memory_total_bytes": about["memory_total_bytes"],
        "memory_available_bytes": about["memory_available_bytes"],
        "process_memory_bytes": process.memory_info().rss,
        "cpu_percent": process.cpu_percent(),
    }
    if device.type == "cuda":
        # Needs nvidia-ml-py, which torch does not bring along, and a driver that answers it.
        with suppress(Exception):  # NVML has errors of its own, of a driver that was updated, say
            described["gpu_percent"] = torch.cuda.utilization(device)
    return described


def _give_up(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)  # noqa: T201 -- the last word of a process that cannot start
    sys.exit(2)
