"""The CIFAR-10 benchmark to its end, with drawn shapes and networks that know nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cifar10, plots

PAIR = "resnet20-resnet8"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results folder of a run of the whole command."""
    folder, threads = tmp_path_factory.mktemp("results"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "TRY_STEPS", 1)
        patch.setitem(cifar10.METHODS, "deepinversion", {"method": "deepinversion", "steps": 2})
        for method in ("default", "paper"):
            smaller = {"steps": 1, "generator_width": 2, "latent_dim": 2}
            patch.setitem(cifar10.METHODS, method, cifar10.METHODS[method] | smaller)
        patch.setattr("benchmarks.zoo_cells.BATCH", 16)
        patch.setattr(cifar10, "BATCH", 16)
        cifar10.main(["--quick", "--threads", "1", "--pairs", PAIR, "--results", str(folder)])
    yield folder
    torch.set_num_threads(threads)


def test_every_method_is_measured_and_has_its_curve(results: Path) -> None:
    result = json.loads((results / "cifar10.json").read_text())
    assert [row["method"] for row in result["rows"]] == list(cifar10.METHODS)
    assert {row["seeds"] for row in result["rows"]} == {1}
    assert {curve["method"] for curve in result["curves"]} == {"default", "paper", "deepinversion"}
    for curve in result["curves"]:
        seconds = [point[0] for point in curve["points"]]
        assert seconds == sorted(seconds)


def test_the_curves_are_drawn(results: Path) -> None:
    assert [path.name for path in plots.draw(results)] == ["cifar10.png"]


def test_data_are_asked_for() -> None:
    with pytest.raises(SystemExit, match="--data is missing"):
        cifar10.main([])


def cell(method: str, student: float, seed: int) -> dict[str, Any]:
    return {
        "pair": PAIR,
        "minutes": 10.0,
        "method": method,
        "seed": seed,
        "teacher_top1": 0.8,
        "student_top1": student,
        "images": 128,
        "kd_steps": 8,
        "cpu_seconds": 600.0,
    }


def test_a_row_is_compared_with_the_paper_at_the_same_time() -> None:
    cells = [cell("default", top1, seed) for seed, top1 in enumerate((0.6, 0.5, 0.7))] + [cell("paper", 0.4, 0)]
    rows = cifar10.summarize(cells)
    assert [(row["method"], row["seeds"], row["share"], row["over_paper"]) for row in rows] == [
        ("default", 3, 0.75, 1.5),
        ("paper", 1, 0.5, 1.0),
    ]
