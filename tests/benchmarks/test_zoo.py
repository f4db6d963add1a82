from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.zoo import describe, summarize
from benchmarks.zoo_teachers import ZOO, input_of, load_images


def cell(name: str, student: float, real: float, verdict: str, seed: int = 0) -> dict[str, Any]:
    return {
        "settings": {"label": name, "seed": seed},
        "teacher_top1": 0.9,
        "student_top1": student,
        "real_top1": real,
        "quality": {"verdict": verdict},
        "images": 1280,
        "kd_steps": 600,
    }


@pytest.mark.parametrize(
    ("student", "real", "verdict", "reaches_goal", "is_right"),
    [
        (0.73, 0.88, "good", True, True),  # four fifths of the teacher, where real images reach it
        (0.71, 0.88, "good", False, True),
        (0.45, 0.50, "doubtful", True, True),  # what real images give, where those do not
        (0.20, 0.50, "poor", False, True),
        (0.20, 0.50, "good", False, False),
        (0.45, 0.50, "poor", True, False),
    ],
)
def test_a_row_says_whether_goal_and_verdict_are_met(
    student: float, real: float, verdict: str, reaches_goal: bool, is_right: bool
) -> None:
    (row,) = summarize([cell("digits-bn", student, real, verdict)])
    assert (row["reaches_goal"], row["verdicts_right"]) == (reaches_goal, is_right)
    assert "digits-bn" in describe({"teachers": [row]})


def test_seeds_of_a_teacher_are_one_row() -> None:
    rows = summarize([cell("digits-bn", top1, 0.8, "good", seed) for seed, top1 in enumerate((0.7, 0.8, 0.75))])
    assert [(row["seeds"], row["student_top1"]) for row in rows] == [(3, 0.75)]


@pytest.mark.parametrize("name", ["digits-bn", "digits8-mlp", "digits-plain"])
def test_a_teacher_and_its_student_take_the_images_of_their_data(name: str) -> None:
    entry = ZOO[name]
    images = load_images(entry.data, None)
    shape = input_of(entry, images[0], entry.norm).shape
    for network in (entry.teacher(), entry.student()):
        assert network.eval()(torch.rand(2, *shape)).shape == (2, entry.classes)
