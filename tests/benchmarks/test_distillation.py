"""The distillation benchmark, with a small batch."""

import json
from pathlib import Path

import pytest

from benchmarks import distillation


def test_steps_are_measured_against_their_floor_in_both_precisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distillation.main(["--quick", "--json", "--threads", "1", "--results", str(tmp_path)])

    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert set(result["precisions"]) == {"float32", "bfloat16"}
    for found in result["precisions"].values():
        assert found["floor_ratio"] > 0
        operations = found["floor_operations"]
        # The teacher's layers send nothing back; of the student all but the images' own gradient is needed.
        assert operations["with_weight_gradient"] == operations["with_input_gradient"] + 1 == 10
        assert operations["layer_calls_per_round"] == 10 + 22
