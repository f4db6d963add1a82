from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import UserError
from shared.tasks.base import build_task
from shared.tasks.segmentation import ConfusionMeter, class_iou
from tests.golden import load_golden

TASK = build_task("semantic-segmentation", 3, 255)
GOLDEN = load_golden("golden_segmentation")["miou"]


def golden_maps() -> tuple[Tensor, Tensor]:
    """Labels and predictions (3, 10, 12) of the golden file's formula."""
    i = torch.arange(360)
    label = (7 * i + i // 5) % 13
    label[label == 9] = 8
    label[label == 12] = 0
    prediction = (label + (i % 4 == 0) + 3 * (i % 7 == 0)) % 13
    prediction[prediction == 9] = 8
    label[i % 11 == 3] = 255
    return label.view(3, 10, 12), prediction.view(3, 10, 12)


def test_one_confusion_matrix_gives_the_published_numbers() -> None:
    labels, predictions = golden_maps()
    meter = ConfusionMeter(13, 255, torch.device("cpu"))
    meter.add(predictions[:2], labels[:2].clamp(max=12), labels[:2])
    meter.add(predictions[2:], labels[2:].clamp(max=12), labels[2:])
    found = meter.result()
    expected = GOLDEN["stream_metrics"]
    assert found.metrics["student_miou"] == pytest.approx(expected["mean_iou"], rel=1e-9)
    assert found.metrics["student_pixel_accuracy"] == pytest.approx(expected["overall_acc"], rel=1e-9)
    assert found.details["student_class_iou"] == pytest.approx(expected["class_iou"], abs=1e-6)
    assert found.metrics["teacher_miou"] == 1.0


def test_the_confusion_matrix_has_rows_of_truth() -> None:
    labels, predictions = golden_maps()
    meter = ConfusionMeter(13, 255, torch.device("cpu"))
    meter.add(predictions, predictions, labels)
    assert meter._matrices[0].tolist() == GOLDEN["confusion_rows_truth_columns_prediction"]


def test_a_class_that_occurs_nowhere_does_not_count() -> None:
    iou = class_iou(torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    assert iou[:2] == pytest.approx([2 / 3, 1 / 2])
    assert math.isnan(iou[2])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(2, 3), "`teacher.task: classification`"),
        (torch.zeros(2, 3, 4, 4), "bring its logits to the size of the image"),
        (torch.zeros(2, 5, 8, 8), r"returned \(2, 5, 8, 8\)"),
        ({"features": torch.zeros(1)}, "returned a dict"),
    ],
)
def test_other_outputs_are_refused_with_what_was_seen(output: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        TASK.logits(output, (2, 3, 8, 8))
    assert error.value.code == "wrong_output_shape"


def test_outputs_are_unwrapped() -> None:
    logits = torch.randn(2, 3, 8, 8)

    class Answer:
        def __init__(self) -> None:
            self.logits = logits

    for output in (logits, {"out": logits, "aux": logits * 2}, {"logits": logits}, (logits, None), Answer()):
        assert TASK.logits(output, (2, 3, 8, 8)) is logits


def test_losses_are_means_over_pixels() -> None:
    logits = torch.randn(2, 3, 8, 8)
    targets = TASK.match(logits, TASK.targets(0, 2), deal=True)
    assert torch.equal(targets, logits.argmax(1))
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert TASK.cross_entropy(logits, targets).mean().item() == pytest.approx(expected.item(), rel=1e-5)
    small, large = logits, logits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = torch.randn(2, 3, 8, 8)
    large_other = other.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert TASK.divergence(other, small).mean().item() == pytest.approx(
        TASK.divergence(large_other, large).mean().item(), rel=1e-5
    )


def test_a_sample_says_how_sure_the_teacher_is_and_what_it_sees_most() -> None:
    logits = torch.full((1, 3, 2, 2), -10.0)
    logits[0, 2] = 10.0
    logits[0, 0, 0, 0] = 30.0
    described = TASK.describe(logits)
    assert described["teacher_main_class"].tolist() == [2]
    assert described["teacher_classes"].tolist() == [2]
    assert described["teacher_confidence"].item() == pytest.approx(1.0, abs=1e-6)


def test_more_classes_than_8_bits_hold_are_told_in_more() -> None:
    task = build_task("semantic-segmentation", 300, 65_535)
    logits = torch.zeros(1, 300, 2, 2)
    logits[0, 299] = 1
    assert task.answers(logits).unique().tolist() == [299]
    assert TASK.answers(torch.zeros(1, 3, 2, 2)).dtype == torch.uint8
