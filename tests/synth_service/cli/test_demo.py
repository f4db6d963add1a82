"""What the demo copies and reports. The demo itself, workers and all, is run in ``tests/e2e``."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from shared.jobs import JobRecord, Stages, State
from shared.specs import JobSpec
from shared.storage import Storage
from shared.tasks import describe_task
from synth_service.cli.demo import outcome_table, run_demo, summarize
from synth_service.cli.job_file import load_job_file
from synth_service.digits_example import ExampleName, example_folder, put_inputs
from tests.synth_service.api_process import clean_environment

RESULT = {
    "images": 7680,
    "shards": 60,
    "synthesis_seconds": 50.0,
    "synthesis_images_per_second": 153.6,
    "kd_steps": 1100,
    "kd_seconds": 55.0,
    "kd_steps_per_second": 20.0,
    "teacher_top1": 0.98,
    "student_top1": 0.97,
    "agreement": 0.975,
    "student": "jobs/job-1/student.safetensors",
    "grid": "jobs/job-1/grid.png",
}


def finished(result: dict[str, Any]) -> JobRecord:
    return JobRecord(
        id="job-1", state=State.SUCCEEDED, created_at=1.0, stages=Stages(), result=result, spec={"seed": 3}
    )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty one of each test's own, in place of the package's."""
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def filled(storage: Storage) -> Storage:
    for name in ("student", "grid"):
        storage.put_bytes(b"content", str(RESULT[name]))
    return storage


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_the_example_is_a_valid_job_and_its_files_are_copied_to_where_it_looks(
    storage: Storage, name: ExampleName
) -> None:
    example = example_folder(name)
    assert example is not None
    spec = load_job_file(str(example / "job.yaml"), ["seed=4"])
    job = JobSpec.model_validate(spec)
    assert job.seed == 4
    put_inputs(spec, example, storage)
    assert job.evaluation is not None
    assert storage.read_bytes(job.teacher.checkpoint) == (example / "teacher.safetensors").read_bytes()
    assert storage.read_bytes(job.evaluation.shards) == (example / "held-out.tar").read_bytes()


def test_every_reported_number_is_the_jobs_own(filled: Storage) -> None:
    outcome = summarize(finished(RESULT), filled, seconds=61.26)
    reported = (
        "teacher_top1",
        "student_top1",
        "agreement",
        "images",
        "synthesis_images_per_second",
        "kd_steps_per_second",
    )
    assert {name: outcome[name] for name in reported} == {name: RESULT[name] for name in reported}
    assert outcome["seconds"] == 61.3
    assert outcome["seed"] == 3
    for name in ("student", "grid"):
        path = Path(outcome[f"{name}_path"])
        assert path.is_absolute()
        assert path.read_bytes() == b"content"
    assert outcome_table(outcome, describe_task("classification")).row_count == 9


@pytest.mark.parametrize("missing", ["student_top1", "agreement", "kd_steps_per_second", "grid"])
def test_a_number_that_is_not_there_is_a_failure_and_not_a_blank(
    filled: Storage, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ending:
        summarize(finished({**RESULT, missing: None}), filled, seconds=1.0)
    assert ending.value.exit_code == 1
    assert missing in capsys.readouterr().err


def test_a_named_file_that_is_not_there_is_a_failure(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        summarize(finished(RESULT), storage, seconds=1.0)
    assert "a file that is not there" in capsys.readouterr().err


def test_without_the_example_there_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("synth_service.cli.demo.example_folder", lambda _: None)
    with pytest.raises(typer.Exit) as ending:
        run_demo(storage=tmp_path / "demo", seed=None, as_json=False)
    assert ending.value.exit_code == 2
    assert "the digits example is missing here" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs /proc as root")
def test_a_folder_that_cannot_be_written_is_one_clear_line() -> None:
    command = [sys.executable, "-c", "from synth_service.cli import main; main()", "demo", "--storage", "/proc/demo"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=60)
    assert done.returncode == 1
    assert "choose another folder with --storage" in done.stderr
    assert "Traceback" not in done.stderr
