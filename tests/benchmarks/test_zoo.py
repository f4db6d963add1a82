from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import zoo_images
from benchmarks.records import markdown
from benchmarks.zoo import describe, rows_of, summarize
from benchmarks.zoo_images import load_images
from benchmarks.zoo_networks import Plain, shrink_before_batch_norm
from benchmarks.zoo_teachers import ZOO, cached, input_of


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


def test_the_table_of_the_documents_is_the_same_table() -> None:
    rows = rows_of({"teachers": summarize([cell("digits-bn", 0.73, 0.88, "good")])})
    assert markdown(rows).splitlines()[2].startswith("| digits-bn | 1 | 0.900 | 0.730 | 0.81 | 0.880 | 0.83 | yes |")


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


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("shapes24x40", (3, 24, 40), 10), ("shapes16-2", (3, 16, 16), 2), ("shapes16-100", (3, 16, 16), 100)],
)
def test_shapes_have_the_size_and_classes_of_their_name(
    name: str, shape: tuple[int, ...], classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo_images, "SHAPES", (600, 300))
    images, labels, tests, _ = load_images.__wrapped__(name, None)
    assert images.shape[1:] == tests.shape[1:] == shape
    assert sorted(set(labels.tolist())) == list(range(classes))


def test_a_changed_recipe_does_not_find_the_weights_of_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cached("digits8-mlp")
    assert cached("digits-wrong-norm") == cached("digits-bn") != before
    monkeypatch.setitem(ZOO, "digits8-mlp", replace(ZOO["digits8-mlp"], epochs=3))
    assert cached("digits8-mlp") != before


@torch.no_grad()
def test_tiny_running_variances_change_no_answer() -> None:
    torch.manual_seed(0)
    network = Plain(3, 10, (4, 8), norm="batch", eps=1e-12)
    images = torch.rand(16, 3, 8, 8)
    for _ in range(40):
        network.train()(images)
    before = network.eval()(images)
    shrink_before_batch_norm(network, 300.0)
    variances = [module.running_var for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(float(variance.max()) < 1e-4 for variance in variances if variance is not None)
    torch.testing.assert_close(network(images), before, rtol=1e-3, atol=1e-4)
