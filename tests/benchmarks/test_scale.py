"""The scale benchmark, with few jobs, shards and workers."""

import json
from pathlib import Path

import pytest

from benchmarks import scale


def test_scale_is_measured_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--quick", "--json", "--results", str(tmp_path)])

    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert result == json.loads((tmp_path / "scale.json").read_text())
    assert set(result["jobs"]["questions"]) >= {"poll", "page", "claim"}
    assert set(result["shards"]["questions"]) >= {"poll", "page"}
    assert result["jobs"]["bytes_per_job"] > 1000
    assert result["shards"]["bytes_per_shard"] > 100
    assert result["workers"]["claim_seconds"]["count"] >= 1
    assert result["workers"]["commands_per_second_and_worker"] > 0
