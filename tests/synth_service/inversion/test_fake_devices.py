"""The inner loop as a GPU would see it: every tensor where it belongs, and no wait for the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from shared.networks.building import build_network
from shared.specs import InputSpec, NetworkSpec
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter
from synth_service.inversion.generator_inverter import GeneratorInverter
from synth_service.inversion.terms import Forward, LossTerm
from tests.fake_devices import Waits, fake_in_place, watch_layers
from tests.synth_service.inversion.samples import DEEP, FAST, FAST_META, AnySynthesis

COLOR = InputSpec(channels=3, height=32, width=32)
METHODS: dict[str, AnySynthesis] = {
    name: spec.model_copy(update={"match_targets": False})
    for name, spec in (("fast-meta", FAST_META), ("fast", FAST), ("deep", DEEP))
}
every_method = pytest.mark.parametrize("spec", METHODS.values(), ids=METHODS.keys())


class Planted(LossTerm):
    """A term that does to the loop what nobody should."""

    name = "planted"

    def __init__(self, what: Any) -> None:
        super().__init__(1.0)
        self._what = what

    def __call__(self, forward: Forward) -> Tensor:
        loss: Tensor = forward.teacher_logits.sum() * 0
        self._what(forward.teacher_logits)
        return loss


class FakeLoop:
    """A generator method with all of its tensors faked.

    The CPU's generator of randomness stands for the GPU's, which does not exist here.
    """

    def __init__(self, spec: AnySynthesis, device: str, *more: LossTerm) -> None:
        cpu = torch.device("cpu")
        teacher, student = (
            build_network(NetworkSpec(arch=arch), num_classes=3, input=COLOR) for arch in ("resnet20", "resnet8")
        )
        inverter = build_inverter(spec, Setup(teacher, build_task("classification", 3), COLOR, seed=0, device=cpu))
        assert isinstance(inverter, GeneratorInverter)
        inverter.use_student(student)
        self.inverter = inverter
        self.mode = FakeTensorMode()
        objective = inverter.objective
        objective.terms += more
        for network in (teacher, student, inverter.generator, inverter.adapted, objective.normalize):
            fake_in_place(network, self.mode, device)
        if inverter.learned_latents is not None:
            holder = nn.ParameterDict({"latents": inverter.learned_latents})
            fake_in_place(holder, self.mode, device)
            inverter.learned_latents = holder["latents"]
        self.device = inverter.device = objective.device = torch.device(device)
        self.random = torch.Generator()

    def run(self) -> Waits:
        """All steps of a round's inner loop."""
        waits = Waits()
        with self.mode, waits, self.inverter.objective.active():
            targets = torch.zeros(4, dtype=torch.int64, device=self.device)
            best = self.inverter.optimize(targets, self.random, lambda: None)
            assert best.images.device == self.device
        return waits

    def forward(self, *, deal: bool = False) -> tuple[Waits, list[Tensor]]:
        """One step up to its loss."""
        inverter, waits = self.inverter, Waits()
        with self.mode, waits, inverter.objective.active():
            targets = torch.zeros(4, dtype=torch.int64, device=self.device)
            latents = torch.empty((4, *inverter.generator.latent_shape), device=self.device)
            images = inverter.adapted(latents)
            views = inverter.augment(images, self.random)
            found = inverter.objective(views, targets, images=images, deal=deal)
        return waits, [images, views, found.per_image, found.teacher_logits, found.targets, *found.terms.values()]


@pytest.fixture(autouse=True)
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory cannot be faked."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: self)


@every_method
def test_the_inner_loop_waits_for_nothing(spec: AnySynthesis) -> None:
    assert FakeLoop(spec, "cpu").run().total == 0


@every_method
def test_on_a_gpu_every_tensor_of_a_step_is_on_the_gpu_and_none_comes_back(spec: AnySynthesis) -> None:
    waits, made = FakeLoop(spec, "cuda").forward()
    assert {each.device.type for each in made} == {"cuda"}
    assert waits.total == 0


def test_dealing_out_the_targets_waits_for_the_gpu_once() -> None:
    loop = FakeLoop(METHODS["fast-meta"], "cuda")
    waits = Waits()
    with waits, pytest.raises(RuntimeError, match="numpy"):  # the assignment is solved on the host
        loop.forward(deal=True)
    assert waits.counted == {"copy to the host": 1}


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (lambda logits: logits.sum().item(), DataDependentOutputException),
        (lambda logits: float(logits.max()), DataDependentOutputException),
        (lambda logits: logits[logits > 0], DynamicOutputShapeException),
        (lambda logits: bool((logits > 0).any()) and None, DataDependentOutputException),
    ],
    ids=["item", "float", "boolean index", "if"],
)
def test_a_look_at_a_value_in_the_loop_is_noticed(what: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        FakeLoop(METHODS["fast-meta"], "cpu", Planted(what)).run()


def test_a_copy_to_the_host_in_the_loop_is_noticed() -> None:
    waits, _ = FakeLoop(METHODS["fast-meta"], "cuda", Planted(lambda logits: logits.cpu())).forward()
    assert waits.counted == {"copy to the host": 1}


def test_a_tensor_left_on_the_host_is_noticed() -> None:
    with pytest.raises((FakeTensorDeviceMismatchError, RuntimeError), match="device"):
        FakeLoop(METHODS["fast-meta"], "cuda", Planted(lambda logits: logits + torch.ones(4, 3))).forward()


@every_method
def test_in_bfloat16_every_layer_of_a_round_computes_in_it_in_channels_last(spec: AnySynthesis) -> None:
    cpu = torch.device("cpu")
    teacher, student = (
        build_network(NetworkSpec(arch=arch), num_classes=3, input=COLOR) for arch in ("resnet20", "resnet8")
    )
    setup = Setup(teacher, build_task("classification", 3), COLOR, seed=0, device=cpu, precision="bfloat16")
    inverter = build_inverter(spec, setup)
    assert isinstance(inverter, GeneratorInverter)
    inverter.use_student(student)
    seen: list[str] = []
    wrong: list[str] = []

    def note(name: str, layer: nn.Module, given: Tensor, output: Tensor) -> None:
        seen.append(name)
        if output.dtype != torch.bfloat16:
            wrong.append(f"{name} computes in {output.dtype}")
        if isinstance(layer, nn.Conv2d) and not given.is_contiguous(memory_format=torch.channels_last):
            wrong.append(f"{name} gets {tuple(given.shape)} in {given.stride()}")

    for network in (teacher, student, inverter.adapted):
        watch_layers(network, note)
    inverter.invert(torch.arange(4) % 3)
    assert len(seen) > 30
    assert wrong == []
