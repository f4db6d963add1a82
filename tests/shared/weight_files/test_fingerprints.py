from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.networks.building import build_network
from shared.networks.fingerprints import fingerprints
from shared.specs import InputSpec, NetworkSpec
from shared.specs.architectures import ARCHITECTURES
from shared.weight_files.fingerprints import Likeness, known, recognize
from shared.weight_files.inspection import TensorEntry, inspect


def test_the_file_is_up_to_date() -> None:
    archs = ["resnet8", "wrn16_1", "vgg8", "resnet18", "torchvision:resnet18"]
    stored = {each: (names, each.shapes) for names, alike in known().items() for each in alike if each.arch in archs}
    fresh = fingerprints(iter(archs))
    assert {(each.arch, names, each.shapes) for each, (names, _) in stored.items()} == {
        (alike[0], names, alike[3]) for names, all_alike in fresh.items() for alike in all_alike
    }
    assert {each.arch for each in stored} == set(archs)


def test_every_named_network_is_known() -> None:
    found = {each.arch for alike in known().values() for each in alike}
    assert set(ARCHITECTURES) - found == {"wide_resnet", "resnet_cifar", "deeplab"}


@pytest.mark.parametrize("prefix", ["net.", "module.", "_orig_mod.", "model.backbone.", "module._orig_mod.net."])
def test_what_stands_before_every_name_is_no_hindrance(prefix: str) -> None:
    network = build_network(NetworkSpec(arch="resnet8"), num_classes=7, input=InputSpec())
    named = [
        TensorEntry(name=prefix + name, dtype="F32", shape=list(each.shape))
        for name, each in network.state_dict().items()
    ]
    assert recognize(named) == Likeness(("resnet8",), 7, 3)


@pytest.mark.parametrize("form", ["safetensors", "torch", "data-parallel"])
@pytest.mark.parametrize("arch", ["resnet20", "resnet20_cifar_a", "wrn16_2", "vgg8", "torchvision:resnet18"])
def test_a_network_is_recognised_whatever_its_classes_and_channels(tmp_path: Path, arch: str, form: str) -> None:
    channels, size = (3, 64) if ":" in arch else (2, 32)
    spec, input = NetworkSpec(arch=arch), InputSpec(channels=channels, height=size, width=size)
    network = build_network(spec, num_classes=7, input=input)
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save((torch.nn.DataParallel(network) if form == "data-parallel" else network).state_dict(), path)
    assert recognize(inspect(path).tensors) == Likeness((arch,), 7, channels)


def test_an_unknown_network_is_not_recognised(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 5))
    torch.save(network.state_dict(), tmp_path / "weights")
    assert recognize(inspect(tmp_path / "weights").tensors) == Likeness((), 5, 3)
    assert recognize([]) == Likeness()


def test_the_popular_networks_of_timm_are_known() -> None:
    network = build_network(
        NetworkSpec(arch="timm:deit_tiny_patch16_224"), num_classes=7, input=InputSpec(height=224, width=224)
    )
    named = [
        TensorEntry(name=f"module.{name}", dtype="F32", shape=list(each.shape))
        for name, each in network.state_dict().items()
    ]
    assert recognize(named) == Likeness(("timm:deit_tiny_patch16_224",), 7, 3)
