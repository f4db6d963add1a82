"""A smoke test of the headline benchmark: every method, at a size that takes seconds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import headline
from benchmarks.digits import load_networks
from benchmarks.headline_cells import BatchMaker, Budget, Method, job_of, steps_due, warmup_rounds

TINY = ["--quick", "--json", "--threads", "1", "--images", "8", "--batch", "4", "--kd-steps", "4", "--kd-batch", "4"]
TINY += ["--deepinversion-images", "4", "--deepinversion-steps", "2", "3"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results folder of a run of the whole command."""
    folder = tmp_path_factory.mktemp("results")
    threads = torch.get_num_threads()
    headline.main([*TINY, "--results", str(folder)])
    yield folder
    torch.set_num_threads(threads)


def test_all_methods_are_measured_and_compared(results: Path) -> None:
    result = json.loads((results / "headline.json").read_text())

    assert [row["method"] for row in result["methods"]] == [
        *("Fast-2", "Fast-5", "Fast-10", "Fast-5 sequential", "Fast-5 no reuse"),
        *("DeepInversion-2", "DeepInversion-3"),
    ]
    assert {row["images"] for row in result["methods"]} == {8, 4}
    assert result["claim"]["baseline"] == "DeepInversion-3"
    assert result["methods"][-1]["speed_up_per_image"] == 1
    assert set(result["reuse"]["student_top1"]) == {"meta", "sequential", "none"}
    assert all(curve["points"][-1][2] == 4 for curve in result["curves"])


def test_results_are_drawn(results: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    from benchmarks import plots

    drawn = plots.draw(results)

    assert {path.name for path in drawn} == {"headline.png", "seconds-to-accuracy.png", "images-to-accuracy.png"}
    assert all(path.stat().st_size > 5_000 for path in drawn)


def test_only_missing_cells_are_measured(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = sorted((results / "headline-cells").iterdir())
    contents = {path: path.read_bytes() for path in cells[1:]}
    cells[0].unlink()

    headline.main([*TINY, "--results", str(results)])

    assert sorted((results / "headline-cells").iterdir()) == cells
    assert {path: path.read_bytes() for path in cells[1:]} == contents
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((results / "headline.json").read_text())


def test_without_reuse_the_generator_is_new_but_the_statistics_average_goes_on() -> None:
    method = Method("x", 12, 4, {"preset": "fast-2", "method": "fast"}, reuse=False)
    job = job_of(method, Budget(4, 4), seed=0)
    teacher, _ = load_networks(job, torch.device("cpu"))
    maker = BatchMaker(method, job, teacher, torch.device("cpu"))

    maker.next()
    first = maker._inverter
    average = first.state_dict()["bn_average"].clone()
    maker._start_afresh()
    second = maker._inverter

    before, after = first.state_dict(), second.state_dict()
    assert after["rounds"] == 1
    assert torch.equal(after["bn_average"], average)
    assert not torch.equal(before["generator"]["l1.0.weight"], after["generator"]["l1.0.weight"])


@pytest.mark.parametrize("rounds", [1, 2, 4, 30])
def test_kd_steps_start_after_the_warm_up_and_end_with_the_early_share(rounds: int) -> None:
    due = [steps_due(done, rounds, 480) for done in range(rounds + 1)]

    assert due[warmup_rounds(rounds)] == 0
    assert due[rounds] == 480
    assert due == sorted(due)


def test_on_par_means_within_the_larger_spread_of_the_seeds() -> None:
    def row(low: float, middle: float, high: float, seconds: float) -> dict[str, Any]:
        times = {"median": seconds}
        top1 = {"min": low, "median": middle, "max": high}
        return {"student_top1": top1, "seconds_per_image": times, "synthesis_seconds": times}

    baseline = row(0.97, 0.98, 0.98, 100.0)

    near = headline.compare(row(0.96, 0.965, 0.98, 0.5), baseline)
    far = headline.compare(row(0.95, 0.955, 0.96, 0.5), baseline)

    assert near["on_par"]
    assert near["speed_up_per_image"] == 200
    assert not far["on_par"]
