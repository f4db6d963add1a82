from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.networks.building import build_network
from shared.networks.image_operations import Normalization
from shared.networks.training_inputs import facts_of, training_inputs
from shared.specs import InputSpec, NetworkSpec

INPUT = InputSpec(channels=3, height=24, width=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def smooth_pictures(count: int, seed: int, *, mean: float, deviation: float) -> Tensor:
    """Blurred noise, which is no power law: (N, 3, 24, 24) of this mean and deviation."""
    noise = torch.randn(count, 3, 30, 30, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1)[:, :, 2:26, 2:26] + noise.mean((2, 3), keepdim=True) * 5
    smooth = smooth + smooth.mean(1, keepdim=True)
    return (smooth - smooth.mean()) / smooth.std() * deviation + mean


def trained(network: nn.Module, pixels: Tensor, input: InputSpec = INPUT) -> nn.Module:
    """With the statistics of these images; its weights are random."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
    with torch.no_grad():
        network.train()(Normalization(input)(pixels))
    return network.eval()


def resnet() -> nn.Module:
    torch.manual_seed(3)
    return build_network(NetworkSpec(arch="resnet8"), num_classes=10, input=INPUT)


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.25), (0.3, 0.1), (0.13, 0.3)])
def test_mean_and_deviation_of_the_training_are_found(mean: float, deviation: float) -> None:
    network = trained(resnet(), smooth_pictures(256, 0, mean=mean, deviation=deviation))

    found = training_inputs(network, INPUT)

    assert found is not None
    pixel_mean, pixel_deviation = found.in_pixels(INPUT)
    assert pixel_mean == pytest.approx(mean, abs=0.05)
    assert pixel_deviation == pytest.approx(deviation, rel=0.35)


def test_another_normalization_gives_other_pixels() -> None:
    network = trained(resnet(), smooth_pictures(256, 0, mean=0.5, deviation=0.25))
    claimed = INPUT.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})

    facts = facts_of(network, claimed)

    assert facts["batch_norm"] == 1
    assert facts["training_pixel_mean"] == pytest.approx(0, abs=0.1)
    assert facts["training_pixel_deviation"] == pytest.approx(0.5, rel=0.35)


def test_an_offset_before_the_layer_is_no_mean() -> None:
    network = resnet()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.bias = nn.Parameter(torch.linspace(-3, 3, first.out_channels))
    trained(network, smooth_pictures(256, 0, mean=0.5, deviation=0.25))

    found = training_inputs(network, INPUT)

    assert found is not None
    assert found.in_pixels(INPUT)[0] == pytest.approx(0.5, abs=0.05)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def bent() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))


class Differences(nn.Module):
    """Sees no mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.norm(images[..., 1:] - images[..., :-1])
        return answer


@pytest.mark.parametrize("build", [plain, bent, Differences])
def test_networks_that_do_not_tell_give_none(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = trained(build(), smooth_pictures(64, 0, mean=0.4, deviation=0.2))

    assert training_inputs(network, INPUT) is None
    assert facts_of(network, INPUT).keys() == {"batch_norm"}


def test_a_network_that_was_never_trained_tells_nothing() -> None:
    assert training_inputs(resnet(), INPUT) is None


def test_channels_that_were_constant_in_training_count_for_nothing() -> None:
    network = resnet()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight[:3] = 0
    trained(network, smooth_pictures(256, 0, mean=0.5, deviation=0.25))

    found = training_inputs(network, INPUT)

    assert found is not None
    assert found.in_pixels(INPUT)[1] == pytest.approx(0.25, rel=0.35)


def test_the_network_stays_as_it_was() -> None:
    network = resnet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    training_inputs(network, INPUT)

    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
