from __future__ import annotations

import math

import pytest
import torch

from shared.tasks.base import build_task
from synth_service.inversion import losses
from synth_service.inversion.losses import class_balance, jensen_shannon, total_variation
from synth_service.inversion.terms import Adversarial, Forward, OneHot
from tests.golden import formula_image, load_golden

INDEX = torch.arange(40, dtype=torch.float64)
STUDENT = 3 * torch.sin(INDEX).reshape(4, 10)
TEACHER = 2 * torch.cos(0.7 * INDEX).reshape(4, 10)
GOLDEN = load_golden()["losses"]
EMPTY = torch.empty(0)


def test_jensen_shannon_agrees_with_the_published_implementation() -> None:
    assert jensen_shannon(STUDENT, TEACHER).mean().item() == pytest.approx(GOLDEN["jsdiv_T3"], rel=1e-6)


def test_total_variation_agrees_with_the_published_implementation() -> None:
    expected = GOLDEN["total_variation_l1_of_image(2,3,32)"]
    assert total_variation(formula_image(2, 3, 32)).mean().item() == pytest.approx(expected, rel=1e-6)


def test_deepinversions_priors_agree_with_the_published_implementation() -> None:
    images = formula_image(2, 3, 32) - 0.5
    expected = load_golden("golden_methods")["deepinversion"]["static_image(2,3,32)-0.5"]
    assert total_variation(images).mean().item() == pytest.approx(expected["tv_l1"], rel=1e-6)
    assert losses.total_variation_l2(images).item() == pytest.approx(expected["tv_l2"], rel=1e-6)
    of_image, of_batch = (
        expected["l2_imagenet (mean over images of the norm)"],
        expected["l2_cifar (norm of the whole batch)"],
    )
    assert losses.norm(images).mean().item() == pytest.approx(of_image, rel=1e-6)
    assert losses.batch_norm_of_pixels(images).item() == pytest.approx(of_batch, rel=1e-6)


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
    forward = Forward(EMPTY, EMPTY, EMPTY, teacher, student)
    assert Adversarial(1.1, build_task("classification", 2))(forward).tolist() == pytest.approx([-kl, 0.0])


def test_one_hot_prefers_the_target() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0]] * 2)
    forward = Forward(EMPTY, EMPTY, torch.tensor([0, 1]), logits, None)
    on, off = OneHot(1.0, build_task("classification", 3))(forward).tolist()
    assert off == pytest.approx(on + 3.0)
