from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from shared.errors import UserError
from shared.networks.batch_norm import layers_with_statistics
from synth_service.inversion.batch_norm import BatchNormMatching
from tests.golden import fill_by_formula, formula_image
from tests.synth_service.inversion.samples import SmallNetwork


def network_of(layer: nn.Module) -> nn.Module:
    network = nn.Sequential(layer).double().eval().requires_grad_(False)
    fill_by_formula(network)
    return network


def activation(layer: nn.Module) -> Tensor:
    tails: dict[type[nn.Module], tuple[int, ...]] = {nn.BatchNorm1d: (), nn.BatchNorm3d: (2, 3, 2)}
    shape = (5, 4, *tails.get(type(layer), (3, 2)))
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def plain_loss(layer: nn.Module, x: Tensor) -> Tensor:
    """The definition, left to autograd."""
    values = x.transpose(0, 1).flatten(1)
    goal_mean, goal_variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    loss: Tensor = (goal_variance - values.var(1, correction=0)).norm() + (goal_mean - values.mean(1)).norm()
    return loss


class UsersFrozenNorm(nn.Module):
    """A frozen BatchNorm of somebody's own: no common base class, just the two buffers."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean.view(1, -1, 1, 1)) * self.running_var.rsqrt().view(1, -1, 1, 1)


LAYERS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4, affine=False),
    nn.BatchNorm3d(4),
    nn.SyncBatchNorm(4),
    FrozenBatchNorm2d(4),
    UsersFrozenNorm(4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_loss_output_and_gradient_are_those_of_plain_autograd(layer: nn.Module) -> None:
    network = network_of(layer)
    matching = BatchNormMatching(network)
    x = activation(layer)
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    expected_output = network(x)
    expected_loss = plain_loss(layer, x)
    (expected_gradient,) = torch.autograd.grad(expected_loss + (expected_output * weights).sum(), x)
    with matching.observing():
        output = network(x)
        loss = matching.loss()
    (gradient,) = torch.autograd.grad(loss + (output * weights).sum(), x)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_of_half_as_many_bits_the_statistics_are_float32_and_the_gradient_is_as_near_as_its_bits_allow(
    layer: nn.Module,
) -> None:
    x = (3 + activation(layer).detach()).to(torch.bfloat16)
    layer.float()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found: list[tuple[Tensor, Tensor]] = []
    for values in (x.float(), x):
        values = values.requires_grad_()
        network = network_of(layer)
        matching = BatchNormMatching(network.float())
        with matching.observing():
            output = network(values)
            loss = matching.loss()
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss + (output * weights.to(output.dtype)).float().sum(), values)
        assert gradient.dtype == values.dtype
        found.append((loss, gradient.float()))
    (loss, gradient), (reduced_loss, reduced_gradient) = found
    torch.testing.assert_close(reduced_loss, loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reduced_gradient, gradient, rtol=0.02, atol=0.02)


def test_networks_without_running_statistics_have_no_such_layers() -> None:
    network = nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False), nn.LayerNorm(3))
    assert layers_with_statistics(network) == []


def test_momentum_blends_with_the_average_of_earlier_rounds() -> None:
    layer = nn.BatchNorm2d(4)
    network = network_of(layer)
    matching = BatchNormMatching(network, momentum=0.9)
    first, second = formula_image(3, 4, 5), formula_image(4, 4, 5).flip(0)
    with matching.observing():
        network(first)
        assert matching.loss().item() == pytest.approx(plain_loss(layer, first).item())
        matching.update_average()
        network(second)
        blended = matching.loss().item()
    mean = 0.1 * second.mean((0, 2, 3)) + 0.9 * first.mean((0, 2, 3))
    variance = 0.1 * second.var((0, 2, 3), correction=0) + 0.9 * first.var((0, 2, 3), correction=0)
    assert isinstance(layer.running_mean, Tensor)
    assert isinstance(layer.running_var, Tensor)
    expected = (layer.running_var - variance).norm() + (layer.running_mean - mean).norm()
    assert blended == pytest.approx(expected.item())


def test_a_perfect_match_costs_nothing_and_has_a_finite_gradient() -> None:
    layer = nn.BatchNorm2d(1).double().eval()
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1).requires_grad_()
    matching = BatchNormMatching(layer)
    with matching.observing():
        layer(x)
        loss = matching.loss()
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() < 1e-100
    assert gradient.isfinite().all()


def test_layers_that_the_forward_pass_leaves_out_do_not_count() -> None:
    network = SmallNetwork().double().eval()
    alone = BatchNormMatching(network.features)
    network.features.append(nn.Identity())
    auxiliary = nn.Module()
    auxiliary.add_module("head", nn.BatchNorm2d(7))
    network.add_module("auxiliary", auxiliary)
    both = BatchNormMatching(network)
    losses = []
    for matching in (alone, both):
        with matching.observing():
            network(formula_image(2, 1, 16))
            losses.append(matching.loss().item())
    assert len(both.layers) == len(alone.layers) + 1
    assert losses[0] == losses[1]


def test_nothing_stays_on_the_network_afterwards() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), FrozenBatchNorm2d(4)).eval()
    matching = BatchNormMatching(network)
    with pytest.raises(ZeroDivisionError), matching.observing():
        raise ZeroDivisionError
    for layer in network:
        assert "forward" not in vars(layer)
        assert not layer._forward_pre_hooks


class NormInPlace(nn.BatchNorm2d):
    """As In-Place ABN: overwrites what it is given."""

    def forward(self, images: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = self.running_mean.view(1, -1, 1, 1), self.running_var.view(1, -1, 1, 1)
        return images.sub_(mean).div_((variance + self.eps).sqrt())


def test_a_layer_that_works_in_place_is_observed_as_any_other() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    gradients = []
    for layer in (nn.BatchNorm2d(4, affine=False), NormInPlace(4, affine=False)):
        network = nn.Sequential(convolution, layer, nn.ReLU(inplace=True)).eval().requires_grad_(False)
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        matching = BatchNormMatching(network)
        with matching.observing():
            answer = network(images).sum()
            (answer + matching.loss()).backward()
        assert images.grad is not None
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)


class PastItsLayers(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        convolution: Tensor = self[0](images)
        return convolution


def test_a_network_that_goes_past_its_layers_is_told() -> None:
    network = PastItsLayers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    matching = BatchNormMatching(network)
    with matching.observing():
        network(torch.rand(2, 3, 8, 8))
        with pytest.raises(UserError, match="none of its 1 layers") as refused:
            matching.loss()
    assert refused.value.code == "teacher_hides_layers"
