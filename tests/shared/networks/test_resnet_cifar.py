from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared.networks.building import build_network
from shared.networks.definitions.resnet_cifar import PlainShortcutBlock
from shared.specs import InputSpec, NetworkSpec


@pytest.mark.parametrize("size", [7, 8])
def test_a_shortcut_without_weights_is_every_second_pixel_between_black_channels(size: int) -> None:
    block = PlainShortcutBlock(4, 8, 2).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()  # all that is left is the shortcut
        images = torch.rand(2, 4, size, size)
        expected = F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        assert torch.equal(block(images), expected)


def test_the_names_are_those_of_public_checkpoints() -> None:
    network = build_network(NetworkSpec(arch="resnet20_cifar_a"), num_classes=10, input=InputSpec())
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"} <= names
    assert not any("downsample" in name for name in names)
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
