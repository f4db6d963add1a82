from __future__ import annotations

import copy
import io
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distiller.evaluation import Evaluator
from distiller.pool import ImagePool
from distiller.trainer import Trainer, learning_rate_at
from shared.errors import UserError
from shared.networks.image_operations import Normalization, to_pixels
from shared.specs import AugmentationSpec, DistillationSpec, InputSpec
from shared.specs.precision import PrecisionName
from tests.distiller.toys import CPU, INPUT, TASK, toy_images, toy_network, toy_samples, toy_teacher

UNCHANGED = AugmentationSpec(crop_padding=0, horizontal_flip=False)
SHIFTED = AugmentationSpec(crop_padding=1, horizontal_flip=False)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return toy_teacher()


def spec_of(**changes: Any) -> DistillationSpec:
    fields = {
        "steps": 100,
        "batch_size": 32,
        "learning_rate": 0.1,
        "final_learning_rate": 2e-4,
        "learning_rate_warmup_steps": 0,
        "max_gradient_norm": None,
        "temperature": 4.0,
        "procedural_share": 0.0,
        "augmentation": UNCHANGED,
    }
    return DistillationSpec(**(fields | changes))


def trainer_of(spec: DistillationSpec, teacher: nn.Module, student: nn.Module | None = None, seed: int = 0) -> Trainer:
    return Trainer(spec, student or toy_network(seed=2), teacher, task=TASK, input=INPUT, seed=seed, device=CPU)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_distillation_makes_the_student_agree_with_the_teacher(teacher: nn.Module) -> None:
    evaluator = Evaluator(toy_samples(400, seed=5), teacher, task=TASK, input=INPUT, batch_size=128, device=CPU)
    pool = ImagePool(1000, INPUT.shape, CPU)
    pool.add(toy_images(512, seed=4)[0])
    trainer = trainer_of(spec_of(steps=150, augmentation=SHIFTED), teacher)
    before = evaluator.evaluate(trainer.student).metrics
    losses = []
    for _ in range(3):
        for _ in range(50):
            trainer.step(pool.sample(32, trainer.generator))
        losses.append(trainer.metrics()["loss"])
    after = evaluator.evaluate(trainer.student).metrics
    assert before["agreement"] < 0.6
    assert after["agreement"] > 0.95
    assert after["student_top1"] > 0.95
    assert losses[0] > losses[1] > losses[2]
    assert trainer.step_count == 150


def test_a_step_is_textbook_sgd_with_momentum_on_the_loss(teacher: nn.Module) -> None:
    spec = spec_of(steps=3, momentum=0.8, weight_decay=0.01)
    expected = toy_network(seed=2)
    parameters = list(expected.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    trainer = trainer_of(spec, teacher)
    for step in range(3):
        batch, _ = toy_images(16, seed=10 + step)
        trainer.step(batch)
        inputs = Normalization(INPUT)(to_pixels(batch))
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        gradients = torch.autograd.grad(trainer.loss(expected(inputs), teacher_logits), parameters)
        rate = 2e-4 + (0.1 - 2e-4) * (1 + math.cos(math.pi * step / 3)) / 2
        with torch.no_grad():
            for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
                velocity.mul_(0.8).add_(gradient + 0.01 * parameter)
                parameter.sub_(rate * velocity)
    for actual, wanted in zip(trainer.student.parameters(), parameters, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_falls_along_a_cosine_and_stays_at_its_end() -> None:
    spec = spec_of(learning_rate=0.2, final_learning_rate=2e-4)
    rates = [learning_rate_at(step, spec, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[50] == pytest.approx((0.2 + 2e-4) / 2)
    assert rates[100] == pytest.approx(2e-4)
    assert all(earlier > later for earlier, later in itertools.pairwise(rates))
    assert learning_rate_at(1000, spec, 100) == pytest.approx(2e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_trainer_continues_bit_by_bit(teacher: nn.Module, dropout: float) -> None:
    torch.set_num_threads(1)
    spec = spec_of(augmentation=AugmentationSpec(crop_padding=1, horizontal_flip=True))
    images, _ = toy_images(200, seed=6)

    def start(student_seed: int) -> tuple[Trainer, ImagePool]:
        pool = ImagePool(1000, INPUT.shape, CPU)
        pool.add(images)
        return trainer_of(spec, teacher, toy_network(seed=student_seed, dropout=dropout), seed=student_seed), pool

    def go(trainer: Trainer, pool: ImagePool, steps: int) -> dict[str, float]:
        for _ in range(steps):
            trainer.step(pool.sample(32, trainer.generator))
        return trainer.metrics()

    undisturbed, its_pool = start(student_seed=2)
    go(undisturbed, its_pool, 9)
    undisturbed.step(its_pool.sample(32, undisturbed.generator))
    file = io.BytesIO()
    torch.save({"trainer": undisturbed.state_dict(), "pool": its_pool.state_dict()}, file)
    expected = go(undisturbed, its_pool, 10)

    resumed, pool = start(student_seed=3)
    torch.manual_seed(12345)  # another process has another global state
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["trainer"])
    pool.load_state_dict(state["pool"])
    assert resumed.step_count == 10
    assert go(resumed, pool, 10) == expected
    assert same_state(resumed.student, undisturbed.student)


def test_another_seed_trains_another_student(teacher: nn.Module) -> None:
    batch, _ = toy_images(32, seed=7)
    trainers = [trainer_of(spec_of(augmentation=SHIFTED), teacher, seed=seed) for seed in (0, 0, 1)]
    for trainer in trainers:
        trainer.step(batch)
    assert same_state(trainers[0].student, trainers[1].student)
    assert not same_state(trainers[0].student, trainers[2].student)


def test_the_teacher_is_not_touched_and_gets_no_gradients(teacher: nn.Module) -> None:
    before = copy.deepcopy(teacher)
    ours = copy.deepcopy(teacher).train()
    trainer = trainer_of(spec_of(), ours)
    for seed in range(3):
        trainer.step(toy_images(16, seed)[0])
    assert same_state(ours, before)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_step_leaves_the_global_random_state_alone(teacher: nn.Module) -> None:
    trainer = trainer_of(spec_of(augmentation=SHIFTED), teacher, toy_network(seed=2, dropout=0.5))
    before = torch.get_rng_state()
    trainer.step(toy_images(16, seed=0)[0])
    assert torch.equal(torch.get_rng_state(), before)


class ScalarReads(TorchDispatchMode):
    """Notes the dtype of every tensor whose value is read; on a GPU each read would wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value_but_the_seed_drawn_on_the_cpu(teacher: nn.Module) -> None:
    trainer = trainer_of(spec_of(augmentation=SHIFTED), teacher)
    batch, _ = toy_images(16, seed=0)
    with ScalarReads() as reads:
        trainer.step(batch)
    assert reads.dtypes == [torch.int64]
    with ScalarReads() as reads:
        trainer.metrics()
    assert reads.dtypes == [torch.float32]


def test_metrics_are_of_the_steps_since_the_last_call(teacher: nn.Module) -> None:
    trainer = trainer_of(spec_of(), teacher)
    assert trainer.metrics() == {"learning_rate": pytest.approx(0.1)}
    losses = []
    for seed in range(2):
        trainer.step(toy_images(16, seed)[0])
        losses.append(trainer.metrics()["loss"])
    together = trainer_of(spec_of(), teacher)
    for seed in range(2):
        together.step(toy_images(16, seed)[0])
    assert together.metrics()["loss"] == pytest.approx(sum(losses) / 2)
    assert "loss" not in together.metrics()


def test_a_diverged_student_is_reported_and_never_saved(teacher: nn.Module) -> None:
    trainer = trainer_of(spec_of(learning_rate=100.0), teacher)
    with torch.no_grad():
        next(trainer.student.parameters()).fill_(math.inf)
    batch, _ = toy_images(16, seed=0)
    trainer.step(batch)
    trainer.step(batch)  # not noticed here: that would wait for the device
    for report in (trainer.state_dict, trainer.metrics):
        with pytest.raises(UserError, match=r"within the 2 steps before step 2; use a .*learning_rate below 100") as e:
            report()
        assert e.value.code == "non_finite_loss"


def test_a_student_with_other_classes_is_refused(teacher: nn.Module) -> None:
    trainer = trainer_of(spec_of(), teacher, toy_network(seed=2, num_classes=7))
    with pytest.raises(UserError, match=r"the student must return .*\(16, 4\).*returned \(16, 7\)") as error:
        trainer.step(toy_images(16, seed=0)[0])
    assert error.value.code == "wrong_output_shape"


class Insatiable(nn.Module):
    """A layer that asks for an exabyte."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.empty(2**60, dtype=torch.uint8)


def test_out_of_memory_names_the_batch_size(teacher: nn.Module) -> None:
    trainer = trainer_of(spec_of(), teacher, nn.Sequential(toy_network(seed=2), Insatiable()))
    with pytest.raises(UserError, match=r"distillation.batch_size is 16, .*: use 8 or less") as error:
        trainer.step(toy_images(16, seed=0)[0])
    assert error.value.code == "out_of_memory"


def test_unresolved_steps_are_refused(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"distillation\.steps is not resolved"):
        trainer_of(spec_of(steps=None), teacher)


def test_crop_padding_beyond_the_images_is_refused_before_any_step(teacher: nn.Module) -> None:
    small = InputSpec(channels=1, height=4, width=4)
    spec = spec_of(augmentation=AugmentationSpec(crop_padding=5))
    with pytest.raises(ValueError, match="crop_padding is 5"):
        Trainer(spec, toy_network(seed=2), teacher, task=TASK, input=small, seed=0, device=CPU)


def test_adamw_has_defaults_of_its_own_which_written_fields_win_over() -> None:
    spec = DistillationSpec(optimizer="adamw", weight_decay=0.05)
    assert (spec.learning_rate, spec.final_learning_rate, spec.weight_decay) == (1e-3, 0.0, 0.05)


def test_a_step_with_adamw_is_torchs(teacher: nn.Module) -> None:
    spec = spec_of(optimizer="adamw", learning_rate=1e-2, final_learning_rate=1e-2, weight_decay=0.1)
    expected = toy_network(seed=2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.1)
    trainer = trainer_of(spec, teacher)
    for step in range(3):
        batch, _ = toy_images(16, seed=10 + step)
        trainer.step(batch)
        inputs = Normalization(INPUT)(to_pixels(batch.to(memory_format=torch.channels_last)))
        optimizer.zero_grad()
        trainer.loss(expected(inputs), teacher(inputs).detach()).backward()
        optimizer.step()
    for one, other in zip(trainer.student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_learning_rate_rises_along_a_line_and_then_falls_along_the_cosine() -> None:
    spec = spec_of(learning_rate=1.0, final_learning_rate=0.0, learning_rate_warmup_steps=4)
    rates = [learning_rate_at(step, spec, 12) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[12:] == [0.0, 0.0]


def test_the_learning_rate_rises_over_a_twentieth_of_the_steps_by_default() -> None:
    spec = spec_of(learning_rate=1.0, learning_rate_warmup_steps=None)
    rates = [learning_rate_at(step, spec, 100) for step in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0], abs=1e-3)


def test_a_step_is_never_longer_than_the_gradient_may_be(teacher: nn.Module) -> None:
    spec = spec_of(max_gradient_norm=1e-3, momentum=0.0, weight_decay=0.0)
    trainer = trainer_of(spec, teacher)
    before = [parameter.detach().clone() for parameter in trainer.student.parameters()]
    trainer.step(toy_images(16, seed=0)[0])
    moved = [after.detach() - other for after, other in zip(trainer.student.parameters(), before, strict=True)]
    length = torch.cat([each.flatten() for each in moved]).norm().item()
    assert length == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixing_is_drawn_from_the_trainers_generator(teacher: nn.Module, kind: str) -> None:
    one, other = (trainer_of(spec_of(mix=kind), teacher) for _ in range(2))
    plain = trainer_of(spec_of(), teacher)
    for trainer in (one, other, plain):
        trainer.step(toy_images(16, seed=1)[0])
    assert same_state(one.student, other.student)
    assert not same_state(one.student, plain.student)


def test_in_bfloat16_a_student_learns_as_it_does_in_float32(teacher: nn.Module) -> None:
    images, _ = toy_images(256, seed=4)
    losses = []
    precisions: tuple[PrecisionName, ...] = ("float32", "bfloat16")
    for precision in precisions:
        trainer = Trainer(
            spec_of(steps=60),
            toy_network(seed=2),
            teacher,
            task=TASK,
            input=INPUT,
            seed=0,
            device=CPU,
            precision=precision,
        )
        for step in range(60):
            trainer.step(images[step % 8 * 32 : step % 8 * 32 + 32])
        losses.append(trainer.metrics()["loss"])
        state = trainer.state_dict()
        floats = [value for value in state["student"].values() if value.is_floating_point()]
        floats += [each["momentum_buffer"] for each in state["optimizer"]["state"].values()] + [state["loss_sum"]]
        assert {value.dtype for value in floats} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_a_float64_student_is_trained_in_float64(teacher: nn.Module) -> None:
    doubled = copy.deepcopy(teacher).double()
    trainer = Trainer(
        spec_of(),
        toy_network(seed=2).double(),
        doubled,
        task=TASK,
        input=INPUT,
        seed=0,
        device=CPU,
        precision="bfloat16",
    )
    seen: list[torch.dtype] = []
    for network in (trainer.student, trainer.teacher):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(lambda _layer, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    trainer.step(toy_images(32, seed=4)[0])
    assert set(seen) == {torch.float64}
