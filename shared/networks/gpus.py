"""NVIDIA GPUs of this machine, as the driver tells of them. Imports no torch: a second that nobody need wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BFLOAT16_CAPABILITY = 8
FLOAT16_CAPABILITY = 7


class GpusUnknown(Exception):
    """The driver cannot be asked; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``capability`` is its major and minor compute capability."""

    number: int
    name: str
    driver: str
    memory_total_bytes: int
    memory_free_bytes: int
    capability: tuple[int, int]

    @property
    def precision(self) -> str:
        """What ``precision: auto`` comes to on it; see ``shared.networks.precision``."""
        if self.capability[0] >= BFLOAT16_CAPABILITY:
            return "bfloat16"
        return "float16" if self.capability[0] == FLOAT16_CAPABILITY else "float32"

    def __str__(self) -> str:
        free, total = self.memory_free_bytes / 2**30, self.memory_total_bytes / 2**30
        memory = f"{free:.1f} of {total:.1f} GiB free"
        return f"cuda:{self.number} {self.name}, {memory}, {self.precision}, driver {self.driver}"


def installed_gpus() -> list[Gpu]:
    """All of them.

    Raises:
        GpusUnknown: there is no driver, or none that answers.
    """
    try:
        import pynvml
    except ModuleNotFoundError:
        raise GpusUnknown("nvidia-ml-py is not installed; it comes with the extra `worker`") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise GpusUnknown(str(error)) from None
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [_describe(pynvml, number, driver) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise GpusUnknown(str(error)) from None
    finally:
        pynvml.nvmlShutdown()


def _describe(library: Any, number: int, driver: str) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(number)
    used = library.nvmlDeviceGetMemoryInfo(handle)
    major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
    name = _text(library.nvmlDeviceGetName(handle))
    return Gpu(number, name, driver, int(used.total), int(used.free), (int(major), int(minor)))


def _text(answer: str | bytes) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer
