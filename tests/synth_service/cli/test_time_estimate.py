"""`dfkd estimate`: real probes of both halves, kept for the next time."""

import json
from pathlib import Path

import pytest

from synth_service.cli import time_estimate
from tests.synth_service.cli.conftest import JOB, dfkd


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def test_a_job_is_measured_once_and_no_checkpoint_is_needed(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dfkd("estimate", str(job), "--json")
    assert first.exit_code == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["seconds_per_round"] > 0
    assert found["seconds_per_step"] > 0
    assert found["synthesis_peak_bytes"] > 100_000_000
    assert found["hours"] < found["hours_on_one_machine"]
    assert found["warnings"] == []
    monkeypatch.setitem(time_estimate.MODULES, "synthesis", "nothing.of.that.name")
    monkeypatch.setitem(time_estimate.MODULES, "distillation", "nothing.of.that.name")
    assert json.loads(dfkd("estimate", str(job), "--json").stdout) == found
    failed = dfkd("estimate", str(job), "--fresh")
    assert failed.exit_code == 1
    assert "synthesis cannot be measured" in failed.stderr


def test_a_dataset_only_job_has_no_distillation_to_measure(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(time_estimate.MODULES, "distillation", "nothing.of.that.name")
    without = ["--set", "distillation=null", "--set", "student=null"]
    told = dfkd("estimate", str(job), *without)
    assert told.exit_code == 0, told.stderr
    assert "seconds per round" in told.stdout
    assert "seconds per step" not in told.stdout


def test_a_job_that_is_none_is_wrong_usage(job: Path) -> None:
    result = dfkd("estimate", str(job), "--set", "synthesis.stepps=3")
    assert result.exit_code == 2
    assert "stepps" in result.stderr
