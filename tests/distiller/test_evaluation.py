from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distiller.evaluation import Evaluation, Evaluator
from shared.errors import UserError
from shared.specs import InputSpec
from tests.distiller.toys import CPU, INPUT, toy_images, toy_network


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
    return Evaluator(IMAGES, torch.tensor(labels), teacher, PLAIN, batch_size=batch_size, device=CPU)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_fractions_are_counted_over_all_images(batch_size: int) -> None:
    labels = [0, 1, 2, 3, 4, 5, 6, 0, 0, 0]  # the teacher is right on 7 of 10
    evaluator = evaluator_of(labels, ByBrightness(10), batch_size)
    assert evaluator.evaluate(ByBrightness(10)) == Evaluation(student_top1=0.7, teacher_top1=0.7, agreement=1.0)
    # One class off everywhere: never with the teacher, and right only on image 9 with label 0.
    assert evaluator.evaluate(ByBrightness(10, offset=1)) == Evaluation(0.1, 0.7, 0.0)


def test_the_teacher_is_asked_once() -> None:
    teacher = ByBrightness(10)
    evaluator = evaluator_of([0] * 10, teacher, batch_size=5)
    for _ in range(3):
        evaluator.evaluate(ByBrightness(10))
    assert teacher.calls == 2


def test_the_result_is_of_the_student_as_it_is_and_not_its_best() -> None:
    evaluator = evaluator_of(list(range(10)), ByBrightness(10))
    assert evaluator.evaluate(ByBrightness(10)).student_top1 == 1
    assert evaluator.evaluate(ByBrightness(10, offset=1)).student_top1 == 0


def test_measuring_uses_eval_mode_and_leaves_the_student_as_found() -> None:
    images, labels = toy_images(50, seed=0)
    student = toy_network(seed=3, dropout=0.9).train()
    student.get_submodule("1").eval()  # a BatchNorm that its user froze
    before = {name: value.clone() for name, value in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    evaluator = Evaluator(images, labels, toy_network(seed=4), INPUT, batch_size=16, device=CPU)
    assert evaluator.evaluate(student) == evaluator.evaluate(student)  # dropout would differ
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_images_reach_the_network_normalised() -> None:
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 4)

    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    Evaluator(images, torch.tensor([0, 1]), Recorder(), INPUT, batch_size=2, device=CPU)
    torch.testing.assert_close(seen[0], torch.full((2, 1, 8, 8), (1 - 0.4) / 0.3))


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_labels_that_the_teacher_does_not_know_are_refused(wrong: int) -> None:
    with pytest.raises(UserError, match=rf"{wrong}.*tells 10 classes apart: they must lie in 0 to 9") as error:
        evaluator_of([0] * 9 + [wrong], ByBrightness(10))
    assert error.value.code == "bad_evaluation_labels"


def test_as_many_labels_as_images_are_needed() -> None:
    with pytest.raises(UserError, match=r"10 images but labels of shape \(9,\)") as error:
        evaluator_of([0] * 9, ByBrightness(10))
    assert error.value.code == "bad_evaluation_labels"


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 1, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 1, 4, 4),
    ],
)
def test_images_that_do_not_suit_the_teacher_are_refused(images: Tensor) -> None:
    labels = torch.zeros(len(images), dtype=torch.int64)
    with pytest.raises(UserError, match=r"teacher's shape \(1, 4, 4\)") as error:
        Evaluator(images, labels, ByBrightness(10), PLAIN, batch_size=2, device=CPU)
    assert error.value.code == "bad_evaluation_images"
