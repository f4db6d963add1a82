"""A KD step and a measurement as a GPU would see them: every tensor where it belongs, and no wait for the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from distiller.evaluation import Evaluator
from distiller.trainer import Trainer, _optimizer
from shared.networks.building import build_network
from shared.specs import AugmentationSpec, DistillationSpec, InputSpec, NetworkSpec
from shared.specs.precision import PrecisionName
from tests.distiller.toys import CPU, INPUT, TASK, toy_network, toy_samples
from tests.fake_devices import Waits, fake, fake_in_place, watch_layers

COLOR = InputSpec(channels=3, height=16, width=16)
BATCH = 8


@pytest.fixture(autouse=True)
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory cannot be faked."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: self)


def trainer_of(precision: PrecisionName = "float32", **changes: Any) -> Trainer:
    spec = DistillationSpec(
        steps=10, batch_size=BATCH, augmentation=AugmentationSpec(), **({"procedural_share": 0.0} | changes)
    )
    teacher, student = (
        build_network(NetworkSpec(arch=arch), num_classes=TASK.num_classes, input=COLOR)
        for arch in ("resnet20", "resnet8")
    )
    return Trainer(spec, student, teacher, task=TASK, input=COLOR, seed=0, device=CPU, precision=precision)


class FakeStep:
    """A trainer with all of its tensors faked. The seed of dropout, drawn on the CPU, is the one value that is read."""

    def __init__(self, device: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.trainer = trainer_of(**changes)
        self.mode = FakeTensorMode()
        for network in (self.trainer.student, self.trainer.teacher, self.trainer.loss, self.trainer.normalize):
            fake_in_place(network, self.mode, device)
        self.trainer.device = torch.device(device)
        parameters = [*self.trainer.student.parameters(), *self.trainer.loss.parameters()]
        self.trainer._optimizer = _optimizer(self.trainer.spec, parameters)
        self.trainer._loss_sum = fake(self.trainer._loss_sum, self.mode, device)
        if (procedural := self.trainer._procedural) is not None:  # chosen before the first step
            procedural._images = fake(torch.zeros((64, *COLOR.shape), dtype=torch.uint8), self.mode, "cpu")
            procedural._device = self.trainer.device
        monkeypatch.setattr(self.trainer, "_draw_seed", lambda: 7)

    def batch(self) -> Tensor:
        """Bytes on the host, as the pool gives them."""
        with self.mode:
            return torch.empty((BATCH, *COLOR.shape), dtype=torch.uint8)


@pytest.mark.parametrize("procedural_share", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, optimizer: str, procedural_share: float) -> None:
    """Mixing draws its shares with scipy, on the host: that cannot be faked, and waits for no device."""
    step = FakeStep("cpu", monkeypatch, optimizer=optimizer, procedural_share=procedural_share)
    with step.mode, Waits() as waits:
        step.trainer.step(step.batch())
        step.trainer.step(step.batch())
    assert waits.total == 0


@pytest.mark.parametrize("procedural_share", [0.0, 0.5])
def test_on_a_gpu_the_forward_pass_of_a_step_stays_there(
    monkeypatch: pytest.MonkeyPatch, procedural_share: float
) -> None:
    step = FakeStep("cuda", monkeypatch, procedural_share=procedural_share)
    monkeypatch.setattr(torch.random, "fork_rng", lambda _: torch.no_grad())  # there is no state of a GPU to keep
    with step.mode, Waits() as waits:
        images = step.trainer._prepare(step.batch())
        loss = step.trainer._compare(images, BATCH)
    assert images.device.type == loss.device.type == "cuda"
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert waits.total == 0


def test_a_look_at_a_value_in_a_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    step = FakeStep("cpu", monkeypatch)
    compare = step.trainer._compare

    def looking(images: Tensor, batch_size: int) -> Tensor:
        loss = compare(images, batch_size)
        loss.item()
        return loss

    monkeypatch.setattr(step.trainer, "_compare", looking)
    with pytest.raises(DataDependentOutputException), step.mode:
        step.trainer.step(step.batch())


def test_metrics_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of()
    monkeypatch.setattr(trainer, "_draw_seed", lambda: 7)
    batch = torch.zeros((BATCH, *COLOR.shape), dtype=torch.uint8)
    with Waits() as waits:
        for _ in range(3):
            trainer.step(batch)
        assert waits.total == 0
        trainer.metrics()
    assert waits.counted == {"_local_scalar_dense": 1}


def test_on_a_gpu_a_measurement_brings_nothing_back_before_its_end() -> None:
    teacher, student = toy_network(seed=3), toy_network(seed=2)
    evaluator = Evaluator(toy_samples(40, seed=5), teacher, task=TASK, input=INPUT, batch_size=16, device=CPU)
    mode = FakeTensorMode()
    for network in (student, evaluator.normalize):
        fake_in_place(network, mode, "cuda")
    evaluator.device = torch.device("cuda")
    evaluator._images = [fake(batch, mode, "cpu") for batch in evaluator._images]
    with mode, Waits() as waits:
        answers = list(evaluator._answers(student, "the student"))
    assert {each.device.type for each in answers} == {"cuda"}
    assert waits.total == 0


def test_in_bfloat16_every_layer_of_a_step_computes_in_it_in_channels_last() -> None:
    trainer = trainer_of("bfloat16")
    seen: list[str] = []
    wrong: list[str] = []

    def note(name: str, layer: nn.Module, given: Tensor, output: Tensor) -> None:
        seen.append(name)
        if output.dtype != torch.bfloat16:
            wrong.append(f"{name} computes in {output.dtype}")
        if isinstance(layer, nn.Conv2d) and not given.is_contiguous(memory_format=torch.channels_last):
            wrong.append(f"{name} gets {tuple(given.shape)} in {given.stride()}")

    for network in (trainer.teacher, trainer.student):
        watch_layers(network, note)
    trainer.step(torch.zeros((BATCH, *COLOR.shape), dtype=torch.uint8))
    assert len(seen) > 25
    assert wrong == []
