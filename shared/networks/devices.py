"""The device a process computes on: choosing it and describing it.

A deployment chooses with ``DFKD_DEVICE`` and ``DFKD_THREADS``; no job says where it runs.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterator
from typing import TypedDict

import psutil
import torch

from shared.errors import UserError


class DeviceDescription(TypedDict):
    """What people want to know of a worker's device."""

    device: str
    name: str
    memory_total_bytes: int
    memory_available_bytes: int


def choose_device(setting: str) -> torch.device:
    """The device that ``DFKD_DEVICE`` asks for.

    Args:
        setting: ``auto`` (CUDA if there is any, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: not one of these, or no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu" or (setting == "auto" and count == 0):
        return torch.device("cpu")
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", setting)
    if match is None:
        raise ValueError(f"DFKD_DEVICE is {setting!r}; use auto, cpu, cuda or cuda:N")
    index = int(match[1] or 0)
    if index >= count:
        found = f"has {count} CUDA device(s), numbered from 0" if count else "has no usable CUDA device"
        raise ValueError(f"DFKD_DEVICE is {setting!r}, but this machine {found}; use auto or cpu, or install a driver")
    return torch.device("cuda", index)


def describe_device(device: torch.device) -> DeviceDescription:
    """Name and memory of a device. Of a CPU it is the machine's memory, which a container may not get in full."""
    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
    else:
        memory = psutil.virtual_memory()
        available, total = memory.available, memory.total
        name = platform.processor() or platform.machine()
    return {
        "device": str(device),
        "name": name,
        "memory_total_bytes": total,
        "memory_available_bytes": available,
    }


def limit_threads(threads: int | None) -> None:
    """Let each tensor operation use this many CPU threads; None leaves torch's default, one per core.

    Processes that share a machine must share its cores: two that take all of them run slower than in turn.
    """
    if threads is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def explain_out_of_memory(field: str, value: int) -> Iterator[None]:
    """Name the field of the spec that decides how much memory the enclosed work takes.

    Raises:
        UserError: ``out_of_memory``, in place of torch's error for a full device or host.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = f"use {value // 2} or less" if value >= 4 else "use smaller images or a smaller network"
        raise UserError("out_of_memory", f"{field} is {value}, for which the memory does not suffice: {remedy}") from (
            error
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, torch on the CPU, or torch on a GPU could not get memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Of torch's allocator on the CPU, and of the libraries under it, only the message tells.
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in ("DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "not enough memory")
    )
