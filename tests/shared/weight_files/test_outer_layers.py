"""Channels and classes of networks that nobody knows."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from shared.weight_files.outer_layers import input_channels, output_classes
from shared.weight_files.wrappers import common_prefix


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in sorted(network.state_dict().items())}


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vgg11", "squeezenet1_1", "vit_b_16", "swin_t"])
def test_a_network_of_torchvision_tells_both(name: str) -> None:
    with torch.device("meta"):
        network = models.get_model(
            name, weights=None, num_classes=17, **{"init_weights": False} if "goog" in name else {}
        )
    assert (input_channels(shapes(network)), output_classes(shapes(network))) == (3, 17)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "mobilenetv3_small_050", "regnetx_002", "levit_128s"])
def test_a_network_of_timm_tells_both_in_gray(name: str) -> None:
    network = timm.create_model(name, num_classes=17, in_chans=1)
    assert (input_channels(shapes(network)), output_classes(shapes(network))) == (1, 17)


def test_the_last_of_several_linear_layers_gives_the_classes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 10))
    assert output_classes(shapes(network)) == 10


def test_what_no_layer_tells_stays_open() -> None:
    assert (input_channels({}), output_classes({})) == (None, None)
    assert input_channels({"conv.weight": (64, 12, 3, 3)}) is None
    assert output_classes({"a.weight": (5, 8), "b.weight": (6, 8)}) is None


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["net.a", "net.b.c"], "net."),
        (["module.net.a", "module.net.b"], "module."),
        (["net.a", "head.b"], None),
        (["a", "b"], None),
        ([], None),
    ],
)
def test_a_common_first_part_is_found(names: list[str], prefix: str | None) -> None:
    assert common_prefix(names) == prefix
