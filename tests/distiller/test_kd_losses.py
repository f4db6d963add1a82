from __future__ import annotations

import pytest
import torch

from distiller.kd_losses import distillation_loss
from tests.golden import load_golden

STUDENT = 3 * torch.sin(torch.arange(40, dtype=torch.float64)).reshape(4, 10)
TEACHER = 2 * torch.cos(0.7 * torch.arange(40, dtype=torch.float64)).reshape(4, 10)


@pytest.mark.parametrize("temperature", [20, 1])
def test_the_loss_is_that_of_the_published_implementation(temperature: int) -> None:
    expected = load_golden()["losses"][f"kd_T{temperature}_batchmean"]
    assert distillation_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_zero_and_flat_where_the_student_equals_the_teacher() -> None:
    student = (TEACHER + 7).requires_grad_()  # a constant changes no distribution
    loss = distillation_loss(student, TEACHER, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_gradients_keep_their_size_over_temperatures() -> None:
    sizes = []
    for temperature in (50.0, 500.0):
        student = STUDENT.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distillation_loss(student, TEACHER, temperature), student)
        sizes.append(gradient.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_extreme_logits_give_a_finite_loss_and_gradient() -> None:
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = distillation_loss(student, torch.tensor([[-1e4, 1e4]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
