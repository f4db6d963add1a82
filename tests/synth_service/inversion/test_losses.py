from __future__ import annotations

import math

import pytest
import torch

from synth_service.inversion.losses import (
    adversarial_divergence,
    class_balance,
    jensen_shannon,
    one_hot,
    total_variation,
)
from tests.golden import formula_image, load_golden

INDEX = torch.arange(40, dtype=torch.float64)
STUDENT = 3 * torch.sin(INDEX).reshape(4, 10)
TEACHER = 2 * torch.cos(0.7 * INDEX).reshape(4, 10)
GOLDEN = load_golden()["losses"]


def test_jensen_shannon_agrees_with_the_published_implementation() -> None:
    assert jensen_shannon(STUDENT, TEACHER).mean().item() == pytest.approx(GOLDEN["jsdiv_T3"], rel=1e-6)


def test_total_variation_agrees_with_the_published_implementation() -> None:
    expected = GOLDEN["total_variation_l1_of_image(2,3,32)"]
    assert total_variation(formula_image(2, 3, 32)).mean().item() == pytest.approx(expected, rel=1e-6)


def test_class_balance_agrees_with_the_published_implementation() -> None:
    expected = GOLDEN["class_balance_of_student_logits"]
    assert class_balance(STUDENT).item() == pytest.approx(expected, rel=1e-6)


def test_class_balance_is_lowest_when_all_classes_are_equally_likely() -> None:
    assert class_balance(torch.eye(10).mul(100)).item() == pytest.approx(-math.log(10))
    assert class_balance(torch.eye(10)[:1].mul(1000)).item() == 0


def test_the_adversarial_term_is_zero_where_the_student_disagrees_and_negative_kl_where_it_agrees() -> None:
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p, q = teacher[0].softmax(0), student[0].softmax(0)
    kl = (p * (p / q).log()).sum().item()
    assert adversarial_divergence(student, teacher).tolist() == pytest.approx([-kl, 0.0])


def test_one_hot_prefers_the_target() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0]] * 2)
    on, off = one_hot(logits, torch.tensor([0, 1])).tolist()
    assert off == pytest.approx(on + 3.0)
