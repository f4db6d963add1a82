"""Networks that pass the dry run and fail at work are told at once, by field; those that can be used are."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.building import build_network
from shared.networks.rehearsal import rehearse_inversion, rehearse_training
from shared.specs import InputSpec, NetworkSpec
from shared.tasks.base import build_task

TASK = build_task("classification", 10)
INPUT = InputSpec()


def body() -> nn.Sequential:
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 10))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, images: Tensor) -> object:
        return self.body(images)


class WithAuxiliaryHead(Around):
    def forward(self, images: Tensor) -> object:
        logits = self.body(images)
        return (logits, logits) if self.training else logits


class WithoutGradient(Around):
    @torch.no_grad()
    def forward(self, images: Tensor) -> object:
        return self.body(images)


class Detached(Around):
    def forward(self, images: Tensor) -> object:
        return self.body(images.detach())


class FailingInTraining(Around):
    def forward(self, images: Tensor) -> object:
        if self.training:
            raise RuntimeError("no labels given")
        return self.body(images)


class OtherShapeInTraining(Around):
    def forward(self, images: Tensor) -> object:
        return self.body(images)[:1] if self.training else self.body(images)


class WithExtraState(Around):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None: ...


class NormInPlace(nn.BatchNorm2d):
    def forward(self, images: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = self.running_mean.view(1, -1, 1, 1), self.running_var.view(1, -1, 1, 1)
        return images.sub_(mean).div_((variance + self.eps).sqrt())


def in_place() -> nn.Module:
    network = body()
    network[1] = NormInPlace(8)
    return network


GOOD: dict[str, Callable[[], nn.Module]] = {
    "plain": body,
    "auxiliary head": WithAuxiliaryHead,
    "extra state": lambda: WithExtraState({"version": 1}),
    "in place": in_place,
}


@pytest.mark.parametrize("what", GOOD)
def test_a_network_that_can_be_used_stays_as_it_is(what: str) -> None:
    network = GOOD[what]()
    network.train()
    before = {name: copy.deepcopy(value) for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    if what != "in place":  # as a teacher it is frozen; its statistics alone are no training
        rehearse_training(network, task=TASK, input=INPUT, field="student.arch")
    rehearse_inversion(network, task=TASK, input=INPUT, field="teacher.arch")
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda: body().requires_grad_(False), "network_cannot_train", "frozen"),
        (nn.Flatten, "network_cannot_train", "frozen"),
        (WithoutGradient, "network_cannot_train", "no_grad"),
        (FailingInTraining, "network_cannot_train", "no labels given"),
        (OtherShapeInTraining, "wrong_output_shape", "student.arch"),
        (lambda: WithExtraState(NormInPlace), "network_cannot_train", "_extra_state"),
    ],
)
def test_a_student_that_cannot_be_trained_is_told(make: Callable[[], nn.Module], code: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        rehearse_training(make(), task=TASK, input=INPUT, field="student.arch")
    assert refused.value.code == code
    assert "student.arch" in refused.value.message


@pytest.mark.parametrize("make", [WithoutGradient, Detached])
def test_a_teacher_that_gives_no_gradient_is_told(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UserError, match="no_grad") as refused:
        rehearse_inversion(make(), task=TASK, input=INPUT, field="teacher.arch")
    assert refused.value.code == "network_hides_gradients"


def test_torchvisions_auxiliary_heads_are_no_obstacle() -> None:
    spec = NetworkSpec(arch="torchvision:googlenet", kwargs={"aux_logits": True, "init_weights": False})
    input = InputSpec(height=80, width=80)
    network = build_network(spec, num_classes=10, input=input)
    rehearse_training(network, task=TASK, input=input, field="student.arch")


def half(num_classes: int) -> nn.Module:
    return body().half()


def double(num_classes: int) -> nn.Module:
    return body().double()


@pytest.mark.parametrize("name", ["half", "double"])
def test_networks_of_other_precisions_become_float32(name: str) -> None:
    spec = NetworkSpec(arch=f"{__name__}:{name}")
    network = build_network(spec, num_classes=10, input=INPUT, allowed_factories=(__name__,))
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def scripted(num_classes: int) -> nn.Module:
    network: nn.Module = torch.jit.script(body())
    return network


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_network_is_told() -> None:
    spec = NetworkSpec(arch=f"{__name__}:scripted")
    with pytest.raises(UserError, match="TorchScript") as refused:
        build_network(spec, num_classes=10, input=INPUT, allowed_factories=(__name__,))
    assert refused.value.code == "scripted_network"
