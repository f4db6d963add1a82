"""Loading what strangers saved, and writing what anyone can load."""

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from shared.errors import UserError
from shared.networks.definitions.resnet_cifar import CifarResNet
from shared.networks.weights import load_checkpoint, save_checkpoint
from shared.weight_files.inspection import inspect
from tests.golden import fill_by_formula


def network(num_classes: int = 10, in_channels: int = 3, depth: int = 8) -> CifarResNet:
    return CifarResNet(num_classes, in_channels, depth=depth, widths=(4, 4, 8, 16))


@pytest.fixture
def trained() -> CifarResNet:
    source = network()
    fill_by_formula(source)
    return source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.bin"


def assert_loads(path: Path, trained: nn.Module) -> None:
    target = network()
    load_checkpoint(target, path, field="teacher.checkpoint")
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, trained.state_dict()[name], rtol=0, atol=0)


def refusal(path: Path, target: nn.Module | None = None) -> UserError:
    target = network() if target is None else target
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_checkpoint(target, path, field="teacher.checkpoint")
    assert caught.value.message.startswith("teacher.checkpoint: ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    return caught.value


@pytest.mark.parametrize("wrapper", ["{}", "state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_come_off(path: Path, trained: CifarResNet, wrapper: str, prefix: str) -> None:
    weights: dict[str, Any] = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    torch.save(weights if wrapper == "{}" else {"epoch": 3, "best": 0.9, wrapper: weights}, path)
    assert_loads(path, trained)


def test_old_torch_file_format_loads(path: Path, trained: CifarResNet) -> None:
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_loads(path, trained)


def test_safetensors_is_recognised_by_content(tmp_path: Path, trained: CifarResNet) -> None:
    path = tmp_path / "weights.pth"
    safetensors.torch.save_file({f"module.{name}": t for name, t in trained.state_dict().items()}, path)
    assert_loads(path, trained)


def test_file_without_batch_counters_loads(path: Path, trained: CifarResNet) -> None:
    torch.save({n: t for n, t in trained.state_dict().items() if not n.endswith("num_batches_tracked")}, path)
    assert_loads(path, trained)


def test_half_precision_file_loads_into_float32(path: Path, trained: CifarResNet) -> None:
    torch.save(trained.half().state_dict(), path)
    target = network()
    load_checkpoint(target, path, field="teacher.checkpoint")
    assert target.fc.weight.dtype == torch.float32
    torch.testing.assert_close(target.fc.weight, trained.fc.weight.float())


def test_names_that_begin_like_a_wrapper_are_the_networks_own(path: Path) -> None:
    source, target = nn.ModuleDict({"module": nn.Linear(2, 2)}), nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(source.state_dict(), path)
    load_checkpoint(target, path, field="teacher.checkpoint")
    assert torch.equal(target.get_parameter("module.weight"), source.get_parameter("module.weight"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.pth").code == "checkpoint_not_found"
    assert refusal(tmp_path).code == "checkpoint_not_found"


class Malice:
    """Pickles to a call that makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle-0", "pickle-2", "pickle-4"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path, path: Path, form: str) -> None:
    trace = tmp_path / "was-here"
    content = {"state_dict": network().state_dict(), "extra": Malice(trace)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(Malice(trace), protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    error = refusal(path)
    # One of protocol 0 begins like any text, and is not even looked at.
    assert error.code == ("unreadable_checkpoint" if form == "pickle-0" else "unsafe_checkpoint")
    assert "network.state_dict()" in error.message
    assert "mkdir" in error.message or form in ("pickle-0", "pickle-4")  # its opcode is refused before the name is read
    assert not trace.exists()
    # The trap is real: an unguarded load springs it.
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.is_dir()


def test_a_pickled_module_is_refused_by_name(path: Path) -> None:
    torch.save(network(), path)
    error = refusal(path)
    assert error.code == "unsafe_checkpoint"
    assert "CifarResNet" in error.message


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(99)])
def test_other_files_are_unreadable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path).code == "unreadable_checkpoint"


@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_unreadable(path: Path, trained: CifarResNet, kind: str, share: float) -> None:
    if kind == "safetensors":
        save_checkpoint(trained, path, {})
    else:
        torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=kind == "torch")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path).code == "unreadable_checkpoint"


@pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": "text"}}])
def test_files_without_a_state_dict_are_unreadable(path: Path, content: Any) -> None:
    torch.save(content, path)
    assert refusal(path).code == "unreadable_checkpoint"


def test_sparse_tensors_are_refused(path: Path, trained: CifarResNet) -> None:
    torch.save({**trained.state_dict(), "fc.weight": trained.fc.weight.detach().to_sparse()}, path)
    error = refusal(path)
    assert error.code == "unreadable_checkpoint"
    assert "fc.weight" in error.message


def test_wrong_num_classes_is_named_with_both_numbers(path: Path, trained: CifarResNet) -> None:
    torch.save(trained.state_dict(), path)
    error = refusal(path, network(num_classes=100))
    assert error.code == "checkpoint_mismatch"
    assert "fc.weight is 10×16 in the file, 100×16 in the network" in error.message
    assert "num_classes is likely wrong: 100, while the file has 10" in error.message
    assert "input.channels" not in error.message


def test_wrong_channels_are_named_with_both_numbers(path: Path, trained: CifarResNet) -> None:
    torch.save(trained.state_dict(), path)
    error = refusal(path, network(in_channels=1))
    assert error.code == "checkpoint_mismatch"
    assert "input.channels is likely wrong: 1, while the file takes 3" in error.message
    assert "num_classes" not in error.message


def test_another_network_is_told_by_missing_and_unexpected_names(path: Path, trained: CifarResNet) -> None:
    torch.save(trained.state_dict(), path)
    deeper = refusal(path, network(depth=14))
    assert "30 missing: layer1.1.conv1.weight, " in deeper.message
    assert "Check arch and kwargs" in deeper.message
    torch.save({**trained.state_dict(), "head.weight": torch.zeros(1)}, path)
    assert "1 unexpected: head.weight." in refusal(path).message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path: Path, trained: CifarResNet, value: float) -> None:
    with torch.no_grad():
        trained.fc.bias[3] = value
    torch.save(trained.state_dict(), path)
    error = refusal(path)
    assert error.code == "checkpoint_not_finite"
    assert "fc.bias" in error.message


def test_saved_checkpoint_loads_here_and_with_stock_safetensors(path: Path, trained: CifarResNet) -> None:
    save_checkpoint(trained, path, {"arch": "resnet_cifar", "top1": "0.98"})
    assert_loads(path, trained)
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"arch": "resnet_cifar", "top1": "0.98"}
        assert set(file.keys()) == set(trained.state_dict())


def test_the_same_weights_and_metadata_give_the_same_bytes(path: Path, trained: CifarResNet) -> None:
    save_checkpoint(trained, path, {"a": "1", "b": "2"})
    first = path.read_bytes()
    save_checkpoint(trained, path, {"b": "2", "a": "1"})
    assert path.read_bytes() == first


def test_shared_and_strided_tensors_are_saved_under_every_name(path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        tied[0].weight = nn.Parameter(torch.arange(9.0).reshape(3, 3).t())
        tied[1].weight = tied[0].weight
    save_checkpoint(tied, path, {})
    loaded = safetensors.torch.load_file(path)
    assert torch.equal(loaded["0.weight"], tied[0].weight)
    assert torch.equal(loaded["1.weight"], tied[0].weight)


def test_a_wrapped_network_is_saved_under_its_own_names(path: Path, trained: CifarResNet) -> None:
    save_checkpoint(nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": trained})}), path, {})
    assert_loads(path, trained)
    assert set(safetensors.torch.load_file(path)) == set(trained.state_dict())


def test_a_module_around_the_network_comes_off_where_that_helps(tmp_path: Path, trained: CifarResNet) -> None:
    """As in a file of a LightningModule, or of a class of one's own, that keeps the network as ``net``."""
    torch.save({f"net.{name}": each for name, each in trained.state_dict().items()}, tmp_path / "wrapped.pt")
    network = copy.deepcopy(trained)
    nn.init.zeros_(network.get_parameter("conv1.weight"))
    load_checkpoint(network, tmp_path / "wrapped.pt", field="teacher.checkpoint")
    assert torch.equal(network.get_parameter("conv1.weight"), trained.get_parameter("conv1.weight"))

    torch.save({"net.other": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"net\.other"):
        load_checkpoint(network, tmp_path / "foreign.pt", field="teacher.checkpoint")


@pytest.mark.parametrize("length", range(0x50, 0x50 + 256, 8))
def test_a_safetensors_file_is_one_whatever_the_length_of_its_header(tmp_path: Path, length: int) -> None:
    """A length such as 0x80 begins like a pickle; one file in 32 has that."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "weights"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\0\0\x80?")
    assert [each.name for each in inspect(path).tensors] == ["weight"]
    wrapped = nn.Module()
    wrapped.weight = nn.Parameter(torch.zeros(1))
    load_checkpoint(wrapped, path, field="teacher.checkpoint")
    assert wrapped.get_parameter("weight").item() == 1.0


def test_a_torch_file_is_one_whatever_it_is_called(tmp_path: Path, trained: CifarResNet) -> None:
    path = tmp_path / "teacher.safetensors"
    torch.save(trained.state_dict(), path)
    loaded = network()
    load_checkpoint(loaded, path, field="teacher.checkpoint")
    assert torch.equal(loaded.conv1.weight, trained.conv1.weight)
