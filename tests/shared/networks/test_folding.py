"""BatchNorm folded into convolutions says the same, or is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.networks.building import build_network
from shared.networks.folding import folded
from shared.specs import InputSpec, NetworkSpec
from tests.golden import fill_by_formula

COLOR = InputSpec(channels=3, height=32, width=32)


def same(output: object) -> Tensor:
    assert isinstance(output, Tensor)
    return output


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("arch", "left"), [("resnet20", 0), ("resnet18", 0), ("vgg11", 8), ("wrn16_1", 7), ("torchvision:resnet18", 0)]
)
def test_a_folded_network_says_the_same_with_fewer_layers(arch: str, left: int) -> None:
    network = build_network(NetworkSpec(arch=arch), num_classes=10, input=COLOR).double().eval()
    fill_by_formula(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)

    made = folded(network, images[:2], same)

    torch.testing.assert_close(made(images), network(images), rtol=1e-9, atol=1e-9)
    # A layer that comes before its convolution stays, and so does a network whose code asks for sizes.
    assert norms(made) == left
    assert made is network or not any(parameter.requires_grad for parameter in made.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images).mean((2, 3))
        return found if found.sum() > 0 else -found


class AsksTwice(nn.Module):
    """The convolution's own answer is used as well, so nothing may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.convolution(images)
        found: Tensor = (self.norm(seen) + seen).mean((2, 3))
        return found


@pytest.mark.parametrize("network", [LooksAtValues(), AsksTwice(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())])
def test_a_network_that_cannot_be_folded_is_left_alone(network: nn.Module) -> None:
    assert folded(network.eval(), torch.randn(2, 3, 32, 32), same) is network
