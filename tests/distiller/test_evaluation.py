from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distiller.evaluation import Evaluator
from shared.errors import UserError
from shared.shards.reader import Samples
from shared.specs import InputSpec
from shared.tasks.base import Evaluation, build_task
from tests.distiller.toys import CPU, INPUT, TASK, toy_network, toy_samples


class ByBrightness(nn.Module):
    """Answers with the image's pixel value plus an offset: image number k gets class k + offset."""

    def __init__(self, num_classes: int, offset: int = 0) -> None:
        super().__init__()
        self.num_classes, self.offset, self.calls = num_classes, offset, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        classes = (images[:, 0, 0, 0] * 255).round().long() + self.offset
        return nn.functional.one_hot(classes % self.num_classes, self.num_classes).float()


PLAIN = InputSpec(channels=1, height=4, width=4)
IMAGES = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *PLAIN.shape)


def evaluator_of(labels: list[int], teacher: nn.Module, batch_size: int = 4) -> Evaluator:
    samples = [Samples(IMAGES.numpy(), np.array(labels))]
    task = build_task("classification", 10)
    return Evaluator(samples, teacher, task=task, input=PLAIN, batch_size=batch_size, device=CPU)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_fractions_are_counted_over_all_images(batch_size: int) -> None:
    labels = [0, 1, 2, 3, 4, 5, 6, 0, 0, 0]  # the teacher is right on 7 of 10
    evaluator = evaluator_of(labels, ByBrightness(10), batch_size)
    found = evaluator.evaluate(ByBrightness(10))
    assert found == Evaluation({"student_top1": 0.7, "teacher_top1": 0.7, "agreement": 1.0})
    # One class off everywhere: never with the teacher, and right only on image 9 with label 0.
    found = evaluator.evaluate(ByBrightness(10, offset=1))
    assert found == Evaluation({"student_top1": 0.1, "teacher_top1": 0.7, "agreement": 0.0})


def test_the_teacher_is_asked_once() -> None:
    teacher = ByBrightness(10)
    evaluator = evaluator_of([0] * 10, teacher, batch_size=5)
    for _ in range(3):
        evaluator.evaluate(ByBrightness(10))
    assert teacher.calls == 2


def test_the_result_is_of_the_student_as_it_is_and_not_its_best() -> None:
    evaluator = evaluator_of(list(range(10)), ByBrightness(10))
    assert evaluator.evaluate(ByBrightness(10)).metrics["student_top1"] == 1
    assert evaluator.evaluate(ByBrightness(10, offset=1)).metrics["student_top1"] == 0


def test_measuring_uses_eval_mode_and_leaves_the_student_as_found() -> None:
    student = toy_network(seed=3, dropout=0.9).train()
    student.get_submodule("1").eval()  # a BatchNorm that its user froze
    before = {name: value.clone() for name, value in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    evaluator = Evaluator(
        toy_samples(50, seed=0), toy_network(seed=4), task=TASK, input=INPUT, batch_size=16, device=CPU
    )
    assert evaluator.evaluate(student) == evaluator.evaluate(student)  # dropout would differ
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_images_reach_the_network_normalised() -> None:
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 4)

    samples = [Samples(np.full((2, 1, 8, 8), 255, np.uint8), np.array([0, 1]))]
    Evaluator(samples, Recorder(), task=TASK, input=INPUT, batch_size=2, device=CPU)
    torch.testing.assert_close(seen[0], torch.full((2, 1, 8, 8), (1 - 0.4) / 0.3))


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(UserError, match="holds no images") as error:
        Evaluator([], ByBrightness(10), task=TASK, input=PLAIN, batch_size=2, device=CPU)
    assert error.value.code == "bad_evaluation_images"


def test_measuring_a_large_set_can_be_ended_between_batches() -> None:
    calls: list[int] = []

    class Enough(Exception):
        pass

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Enough

    with pytest.raises(Enough):
        Evaluator(
            toy_samples(50, seed=0),
            toy_network(seed=4),
            task=TASK,
            input=INPUT,
            batch_size=10,
            device=CPU,
            check=check,
        )
