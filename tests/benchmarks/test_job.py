"""The whole-job benchmark, with few images and steps."""

import json
from pathlib import Path

import pytest

from benchmarks import job


def test_a_job_is_measured_in_both_precisions_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.main(["--quick", "--json", "--threads", "1", "--results", str(tmp_path)])

    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert set(result["precisions"]) == {"float32", "bfloat16"}
    for found in result["precisions"].values():
        assert 0 <= found["mean_top1"] <= 1
        assert found["round"]["floor_ratio"] > 0
        assert found["step"]["floor"] > 0
