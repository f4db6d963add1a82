from __future__ import annotations

import pytest
import torch

from shared.errors import UserError
from shared.networks.devices import (
    choose_device,
    describe_device,
    explain_out_of_memory,
    limit_threads,
)

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def test_the_cpu_can_always_be_chosen() -> None:
    assert choose_device("cpu") == CPU


@without_cuda
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert choose_device("auto") == CPU


@without_cuda
@pytest.mark.parametrize("setting", ["cuda", "cuda:3"])
def test_an_absent_device_is_refused_by_the_name_of_the_setting(setting: str) -> None:
    with pytest.raises(ValueError, match=f"DFKD_DEVICE is '{setting}', but this machine has no usable CUDA device"):
        choose_device(setting)


@with_cuda
def test_cuda_devices_are_chosen_by_index() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(ValueError, match=r"DFKD_DEVICE is 'cuda:99', but this machine has"):
        choose_device("cuda:99")


@pytest.mark.parametrize("setting", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", " auto"])
def test_anything_else_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="use auto, cpu, cuda or cuda:N"):
        choose_device(setting)


def test_a_description_names_the_device_and_its_memory() -> None:
    description = describe_device(choose_device("auto"))
    assert description["device"] == str(choose_device("auto"))
    assert description["name"]
    assert 0 < description["memory_available_bytes"] <= description["memory_total_bytes"]


def test_threads_are_limited_only_when_asked() -> None:
    before = torch.get_num_threads()
    try:
        limit_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        limit_threads(None)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("value", "remedy"), [(256, "use 128 or less"), (2, "use smaller images")])
def test_exhausted_memory_becomes_an_error_that_names_the_field(value: int, remedy: str) -> None:
    with (
        pytest.raises(UserError, match=rf"synthesis\.batch_size is {value}, .*{remedy}") as error,
        explain_out_of_memory("synthesis.batch_size", value),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    assert error.value.code == "out_of_memory"


def test_other_errors_pass_through_unchanged() -> None:
    with pytest.raises(RuntimeError, match="must match"), explain_out_of_memory("synthesis.batch_size", 256):
        torch.zeros(2) + torch.zeros(3)
