"""In which numbers networks compute: half as many bits where the device is made for them, float32 elsewhere.

Only what networks compute inside is ever reduced, by autocast. Weights, statistics, losses, optimizers and the
pixels that a generator makes stay float32; a network of float64 parameters is not touched at all. The device decides
what pays (``auto``), the job may decide otherwise.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from shared.specs.precision import PrecisionName

FLOAT16_LOSS_SCALE: Final = 256.0
"""Lifts gradients over float16's smallest numbers where no scaler watches them; constant, so it needs no sync."""

CPUINFO: Final = Path("/proc/cpuinfo")
CPU_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What Linux calls a processor's bfloat16 multiplication, on x86 and on ARM."""


@dataclass(frozen=True)
class Precision:
    """What networks compute in on a device."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def is_reduced(self) -> bool:
        """Whether autocast does anything."""
        return self.dtype != torch.float32

    @property
    def loss_scale(self) -> float:
        """Constant factor for a loss whose gradients pass through networks; 1 where none is needed."""
        return FLOAT16_LOSS_SCALE if self.dtype == torch.float16 else 1.0

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which networks compute in ``dtype``; with float32 it changes nothing."""
        return torch.autocast(self.device.type, self.dtype) if self.is_reduced else contextlib.nullcontext()

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Scales losses so that float16 gradients do not underflow; passes everything through where not needed."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """What a job's ``precision`` comes to on a device."""
    if name == "auto":
        return Precision(device, fast_type(device) or torch.float32)
    return Precision(device, getattr(torch, name))


def fast_type(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that is faster than float32 on this device and accurate enough to train with, if any.

    bfloat16 from compute capability 8 (Ampere) on; float16 on 7 (Volta, Turing), which has no fast bfloat16
    and whose gradients need scaling; nothing on older ones. On a CPU bfloat16, if it multiplies in it; a CPU that
    only emulates it is slower than in float32.
    """
    if device.type != "cuda":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else None
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:
        return torch.bfloat16
    return torch.float16 if major == 7 else None


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's processor has instructions for it."""
    try:
        text = CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    return bool(CPU_FLAGS & set(next(lines, "").split()))
