from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distiller.held_back import EVERY, FEWEST_IMAGES, HeldBack
from shared.networks.folding import folded
from shared.networks.training_inputs import facts_of
from tests.distiller.toys import CPU, INPUT, TASK, toy_images, toy_network, toy_teacher


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return toy_teacher()


def images(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return toy_images(count, seed)[0].numpy()


def test_one_image_in_sixteen_is_held_back_by_its_number_however_they_arrive(teacher: nn.Module) -> None:
    every = images(200)
    at_once, in_parts = HeldBack(TASK, INPUT, CPU, teacher), HeldBack(TASK, INPUT, CPU, teacher)
    trained_on = at_once.take(every)
    parts = [in_parts.take(part) for part in np.split(every, [7, 50, 51, 130])]
    assert np.array_equal(trained_on, np.concatenate(parts))
    assert len(trained_on) == 200 - 200 // EVERY
    assert at_once.arrived == in_parts.arrived == 200


def test_too_few_images_say_nothing(teacher: nn.Module) -> None:
    held_back = HeldBack(TASK, INPUT, CPU, teacher)
    held_back.take(images(EVERY * (FEWEST_IMAGES - 1)))
    found = held_back.measure(toy_network(seed=1), teacher)
    assert found.keys() == facts_of(teacher, INPUT).keys()
    assert found["batch_norm"] == 1


def test_a_copy_of_the_teacher_agrees_and_another_network_does_not(teacher: nn.Module) -> None:
    held_back = HeldBack(TASK, INPUT, CPU, teacher)
    held_back.take(images(EVERY * 64))
    same = held_back.measure(teacher, teacher)
    assert same["held_back_agreement"] == 1.0
    assert same["held_back_kappa"] > 0.99
    other = held_back.measure(toy_network(seed=5), teacher)
    assert other["held_back_kappa"] < 0.9
    assert 0 < other["class_entropy"] <= 1
    assert 0 < other["diversity"] < 1


def test_a_student_is_measured_as_it_is_used_and_left_as_it_was(teacher: nn.Module) -> None:
    held_back = HeldBack(TASK, INPUT, CPU, teacher)
    held_back.take(images(EVERY * 64))
    student = nn.Sequential(nn.Dropout(0.9), toy_network(seed=5)).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    first, second = (held_back.measure(student, teacher) for _ in range(2))
    assert first == second
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_copy_of_the_teacher_without_its_layers_changes_no_verdict(teacher: nn.Module) -> None:
    """The distiller asks a folded copy, which has no BatchNorm any more."""
    held_back = HeldBack(TASK, INPUT, CPU, teacher)
    held_back.take(images(EVERY * 64))
    example = torch.rand(2, *INPUT.shape)
    copy = folded(teacher, example, lambda output: output)
    assert not any("running_mean" in name for name in copy.state_dict())
    assert held_back.measure(teacher, copy)["batch_norm"] == 1
