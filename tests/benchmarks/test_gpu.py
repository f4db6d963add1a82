"""The GPU benchmark runs to its end where there is no GPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.records import Record


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_it_runs_to_its_end_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny", "--no-compile", "--json", "--threads", "1", "--results", str(tmp_path)])

    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert result == json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert [case["name"] for case in result["cases"]] == [case.name for case in gpu.CASES]
    measured = [*result["cases"], *result["variants"].values(), result["deep_inversion"]]
    assert [each["error"] for each in measured if "error" in each] == []
    assert set(result["variants"]) == {"float32", "tf32", "bfloat16", "float16"}
    assert {each["precision"] for each in result["variants"].values()} == {"float32", "bfloat16", "float16"}
    for each in [*result["cases"], *result["variants"].values()]:
        assert each["images_per_second"] > 0
        # How much more than 1 is for a quiet machine to tell, and not for a test.
        assert each["step_floor_ratio"] > 0


def test_a_case_that_fails_is_told_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Record:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu.guarded("large", fail) == {"error": "OutOfMemoryError: CUDA out of memory"}
