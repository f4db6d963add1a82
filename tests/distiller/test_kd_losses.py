from __future__ import annotations

import pytest
import torch

from distiller.kd_losses import KDLoss, build_kd_loss
from shared.specs import DistillationSpec
from shared.tasks.base import build_task
from tests.golden import load_golden

STUDENT = 3 * torch.sin(torch.arange(40, dtype=torch.float64)).reshape(4, 10)
TEACHER = 2 * torch.cos(0.7 * torch.arange(40, dtype=torch.float64)).reshape(4, 10)


def loss_of(temperature: float, classes: int = 10, loss: str = "kl") -> KDLoss:
    return build_kd_loss(DistillationSpec(temperature=temperature, loss=loss), build_task("classification", classes))


@pytest.mark.parametrize("temperature", [20, 1])
def test_the_loss_is_that_of_the_published_implementation(temperature: int) -> None:
    expected = load_golden()["losses"][f"kd_T{temperature}_batchmean"]
    assert loss_of(temperature)(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_zero_and_flat_where_the_student_equals_the_teacher() -> None:
    student = (TEACHER + 7).requires_grad_()  # a constant changes no distribution
    loss = loss_of(4.0)(student, TEACHER)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_gradients_keep_their_size_over_temperatures() -> None:
    sizes = []
    for temperature in (50.0, 500.0):
        student = STUDENT.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(temperature)(student, TEACHER), student)
        sizes.append(gradient.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_extreme_logits_give_a_finite_loss_and_gradient() -> None:
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = loss_of(1.0, classes=2)(student, torch.tensor([[-1e4, 1e4]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_l1_is_the_mean_distance_of_logits() -> None:
    assert loss_of(20, loss="l1")(STUDENT, TEACHER).item() == pytest.approx((STUDENT - TEACHER).abs().mean().item())
