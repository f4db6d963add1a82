"""From what a job writes to a network, and what is said when that fails."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.networks.building import build_network, check_shapes
from shared.specs import InputSpec, NetworkSpec
from shared.specs.architectures import ARCHITECTURES, check_architecture
from shared.tasks.base import build_task

FACTORIES = """
from torch import nn

class Linear(nn.Sequential):
    def __init__(self, num_classes, features=256, bias=True):
        super().__init__(nn.Flatten(), nn.Linear(features, num_classes, bias))

class Wide(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(256, num_classes + 1))

class Pair(nn.Flatten):
    def __init__(self, num_classes):
        super().__init__()
    def forward(self, x):
        return x, x

def not_a_module(num_classes):
    return {"num_classes": num_classes}

def broken(num_classes):
    raise RuntimeError("out of cheese\\nredo from start")

constant = 3
"""


@pytest.fixture(scope="module", autouse=True)
def factories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "user_networks.py").write_text(FACTORIES)
    (folder / "user_networks_broken.py").write_text("1 / 0")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def build(arch: str, shape: tuple[int, int, int] = (1, 16, 16), num_classes: int = 7, **kwargs: Any) -> nn.Module:
    channels, height, width = shape
    return build_network(
        NetworkSpec.model_validate({"arch": arch, "kwargs": kwargs}),
        num_classes=num_classes,
        input=InputSpec(channels=channels, height=height, width=width),
        allowed_factories=["user_networks", "user_networks_broken", "not_installed"],
    )


def refusal(arch: str, shape: tuple[int, int, int] = (1, 16, 16), **kwargs: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        build(arch, shape, **kwargs)
    return caught.value


@pytest.mark.parametrize("arch", ["wrn16_1", "resnet18", "resnet8", "resnet8x4", "vgg8", "vgg11"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 4, 4), (4, 33, 18), (3, 64, 64)])
def test_every_family_takes_any_channels_and_size(arch: str, shape: tuple[int, int, int]) -> None:
    network = build(arch, shape)
    assert network.training
    network(torch.rand(3, *shape)).sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None


def test_vgg_halves_64_pixel_images_once_more_as_published() -> None:
    network = build("vgg8", (1, 64, 64))
    shapes: list[torch.Size] = []
    network.get_submodule("block4").register_forward_hook(lambda module, given, out: shapes.append(out.shape))
    network(torch.rand(2, 1, 64, 64))
    network(torch.rand(2, 1, 32, 32))
    assert [shape[2] for shape in shapes] == [4, 4]


def test_the_parametric_families_take_depth_and_widths() -> None:
    small = build("resnet_cifar", depth=14, widths=[4, 4, 8, 12])
    assert small.get_submodule("fc").in_features == 12
    assert len(list(small.get_submodule("layer3").children())) == 2
    assert build("wide_resnet", depth=10, width=2).get_submodule("fc").in_features == 128


def test_dropout_of_a_wide_resnet_acts_in_training_only() -> None:
    network = build("wrn16_1", dropout=0.5)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(network.eval()(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_the_same_seed_builds_the_same_weights() -> None:
    torch.manual_seed(5)
    first = build("resnet8").state_dict()
    torch.manual_seed(5)
    second = build("resnet8").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({}, "missing a required argument: 'depth'"),
        ({"depth": 9}, "6n + 2"),
        ({"depth": "deep"}, "TypeError"),
        ({"depth": 8, "widths": [1, 2]}, "four numbers"),
        ({"depth": 8, "color": "red"}, "color"),
        ({"depth": 8, "num_classes": 3}, "kwargs.num_classes is set by the job"),
        ({"depth": 8, "in_channels": 3}, "kwargs.in_channels is set by the job"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        build_network(
            NetworkSpec.model_validate({"arch": "resnet_cifar", "kwargs": kwargs}), num_classes=7, input=InputSpec()
        )
    assert caught.value.code == "bad_network_arguments"
    assert words in caught.value.message


def test_what_a_name_stands_for_cannot_be_changed() -> None:
    error = refusal("resnet20", depth=8)
    assert error.code == "bad_network_arguments"
    assert "by the name `resnet20` itself" in error.message


def test_torchvision_networks_are_built_without_weights() -> None:
    network = build("torchvision:mobilenet_v3_small", (3, 32, 32))
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_googlenet_returns_a_tensor_in_training_too() -> None:
    assert build("torchvision:googlenet", (3, 32, 32))(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_torchvision_refusals() -> None:
    assert refusal("torchvision:resnet18").code == "input_not_accepted"
    unknown = refusal("torchvision:resnet19", (3, 32, 32))
    assert unknown.code == "unknown_architecture"
    assert "`resnet18`" in unknown.message
    assert refusal("torchvision:fcn_resnet50", (3, 32, 32)).code == "unknown_architecture"
    assert refusal("torchvision:alexnet", (3, 16, 16)).code == "input_not_accepted"


def test_timm_networks_take_any_channels() -> None:
    pytest.importorskip("timm")
    assert build("timm:resnet10t", (2, 32, 32)).eval()(torch.rand(2, 2, 32, 32)).shape == (2, 7)
    assert refusal("timm:resnet9999", (2, 32, 32)).code == "unknown_architecture"
    assert refusal("timm:resnet10t", (2, 32, 32), features_only=True).code == "wrong_output_shape"


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # how Python marks a module as absent
    error = refusal("timm:resnet18")
    assert error.code == "timm_not_installed"
    assert "fast-dfkd[timm]" in error.message


@pytest.mark.parametrize("argument", ["weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path"])
@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_arguments_that_fetch_weights_are_refused(zoo: str, argument: str) -> None:
    error = refusal(f"{zoo}:resnet18", (3, 32, 32), **{argument: "x"})
    assert error.code == "bad_network_arguments"
    assert f"kwargs.{argument}" in error.message


def test_a_factory_of_the_users_own() -> None:
    network = build("user_networks:Linear", bias=False)
    assert network.get_submodule("1").out_features == 7
    assert network.get_submodule("1").bias is None


@pytest.mark.parametrize(
    ("arch", "code", "words"),
    [
        ("os:system", "factory_not_allowed", "DFKD_ALLOWED_FACTORIES"),
        ("not_installed.module:make", "unknown_architecture", "cannot be imported"),
        ("user_networks:absent", "unknown_architecture", "absent"),
        ("user_networks:constant", "factory_failed", "cannot be called"),
        ("user_networks:broken", "factory_failed", "RuntimeError: out of cheese"),
        ("user_networks:not_a_module", "factory_failed", "made a dict"),
        ("user_networks:Wide", "wrong_output_shape", "(2, 8)"),
        ("user_networks:Pair", "wrong_output_shape", "returned (2, 1, 16, 16)"),
        ("user_networks_broken:make", "factory_failed", "ZeroDivisionError"),
    ],
)
def test_factories_that_cannot_serve(arch: str, code: str, words: str) -> None:
    error = refusal(arch)
    assert error.code == code
    assert words in error.message


def test_an_input_of_the_wrong_size_is_the_inputs_fault() -> None:
    error = refusal("user_networks:Linear", (1, 8, 8))
    assert error.code == "input_not_accepted"
    assert "1×8×8" in error.message


def test_checking_keeps_mode_and_statistics() -> None:
    network, task = build("resnet8"), build_task("classification", 7)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for training in (True, False):
        network.train(training)
        check_shapes(network, "resnet8", task=task, input=InputSpec(channels=1, height=16, width=16))
        assert network.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_every_suggested_name_of_torchvision_is_one() -> None:
    from torchvision import models

    for name in models.list_models(module=models):
        if name in ARCHITECTURES:
            continue
        with pytest.raises(ValueError, match=f"did you mean `torchvision:{name}`"):
            check_architecture(name)


@pytest.mark.parametrize(
    ("arch", "argument"), [("torchvision:vit_b_32", "image_size"), ("timm:vit_tiny_patch16_224", "img_size")]
)
def test_a_transformer_for_another_image_size_names_the_argument_to_set(arch: str, argument: str) -> None:
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    error = refusal(arch, (3, 64, 64))
    assert error.code == "input_not_accepted"
    assert f"kwargs: {{{argument}: …}}" in error.message
