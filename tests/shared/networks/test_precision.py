"""Which numbers networks compute in, and what stays float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared.networks import precision
from shared.networks.precision import Precision, choose_precision, cpu_multiplies_bfloat16, fast_type
from shared.specs.precision import PrecisionName

CPU = torch.device("cpu")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the processor says of itself; empty until a test writes it."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPUINFO", path)
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", cpu_multiplies_bfloat16.__wrapped__)
    return path


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", torch.bfloat16),
        ("flags : amx_bf16 amx_tile\n", torch.bfloat16),
        ("Features\t: fp asimd bf16\n", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512f\n", torch.float32),
        ("model name : avx512_bf16\n", torch.float32),
        ("", torch.float32),
    ],
)
def test_auto_is_bfloat16_on_a_processor_that_multiplies_in_it(processor: Path, said: str, chosen: torch.dtype) -> None:
    processor.write_text(said)
    assert choose_precision("auto", CPU).dtype == chosen


def test_auto_is_float32_where_the_processor_does_not_tell(processor: Path) -> None:
    assert not processor.exists()
    assert choose_precision("auto", CPU).dtype == torch.float32


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), None)])
def test_auto_goes_by_the_capability_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fast_type(torch.device("cuda")) == chosen


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_job_decides_otherwise(name: PrecisionName) -> None:
    chosen = choose_precision(name, CPU)
    matrix = torch.rand(4, 4)
    with chosen.autocast():
        assert str((matrix @ matrix).dtype) == f"torch.{name}"
        assert (matrix.double() @ matrix.double()).dtype == torch.float64
    assert str(chosen) == name
    assert chosen.is_reduced == (name != "float32")


def test_only_float16_needs_its_gradients_scaled() -> None:
    scaled = {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if Precision(CPU, dtype).loss_scale > 1}
    assert scaled == {torch.float16}
    assert Precision(CPU, torch.float16).gradient_scaler().is_enabled()
    assert not Precision(CPU, torch.bfloat16).gradient_scaler().is_enabled()


@with_cuda
def test_networks_compute_in_reduced_precision_where_the_gpu_is_made_for_it() -> None:
    device = torch.device("cuda", 0)
    matrix = torch.rand(4, 4, device=device)
    with choose_precision("auto", device).autocast():
        reduced = (matrix @ matrix).dtype != torch.float32
    assert reduced == (torch.cuda.get_device_capability(device)[0] >= 7)
