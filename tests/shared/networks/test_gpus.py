"""What is told of GPUs, by a driver that is there or is not."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from shared.networks.gpus import Gpu, GpusUnknown, installed_gpus

A100 = Gpu(1, "NVIDIA A100", "570.1", 80 * 2**30, 60 * 2**30, (8, 0))


class NVMLError(Exception):
    """As pynvml's."""


def driver_with(**changes: object) -> SimpleNamespace:
    """NVIDIA's library as it answers on a machine with two GPUs, one of them old."""
    answers = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"570.1",  # older versions answer in bytes
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * 2**30, free=60 * 2**30),
        "nvmlDeviceGetCudaComputeCapability": lambda number: ((7, 5), (8, 0))[number],
        "nvmlDeviceGetName": lambda number: ("Tesla T4", "NVIDIA A100")[number],
    }
    return SimpleNamespace(**(answers | changes))


def test_gpus_are_told_with_what_decides_whether_a_job_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver_with())
    old, new = installed_gpus()
    assert new == A100
    assert (old.precision, new.precision) == ("float16", "bfloat16")
    assert str(new) == "cuda:1 NVIDIA A100, 60.0 of 80.0 GiB free, bfloat16, driver 570.1"


@pytest.mark.parametrize("place", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_does_not_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def refuse() -> None:
        raise NVMLError("Driver/library version mismatch")

    monkeypatch.setitem(sys.modules, "pynvml", driver_with(**{place: refuse}))
    with pytest.raises(GpusUnknown, match="version mismatch"):
        installed_gpus()


def test_a_library_that_is_missing_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(GpusUnknown, match="nvidia-ml-py is not installed"):
        installed_gpus()
