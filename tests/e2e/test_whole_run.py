"""`dfkd run`: from a teacher's file to a student in one command, where nothing runs beforehand."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

from tests.conftest import free_port
from tests.e2e.service import DIGITS
from tests.synth_service.api_process import clean_environment


def test_a_teachers_file_becomes_a_student_in_one_command(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "synth_service.cli", "run", str(DIGITS / "teacher.safetensors")]
    command += ["--student", "resnet8", "--size", "16", "--normalization", "0.305/0.318", "--to", str(tmp_path / "out")]
    for change in ("synthesis.num_images=128", "synthesis.batch_size=64", "distillation.steps=10"):
        command += ["--set", change]
    environment = clean_environment(
        DFKD_URL=url, DFKD_STORAGE=str(tmp_path / "data"), PYTHONPATH=str(Path.cwd()), OMP_NUM_THREADS="1"
    )
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, env=environment, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["name"]) == ("succeeded", "teacher")
    assert f"no service runs at {url}; starting one for this run" in done.stderr
    assert f"{url}/ui/jobs/{job['id']}" in done.stderr
    assert "guessed" not in done.stderr
    assert {"student.safetensors", "README.md", "shards"} <= {path.name for path in (tmp_path / "out").iterdir()}
    with safe_open(tmp_path / "out" / "student.safetensors", framework="pt") as file:
        told = file.metadata()
    assert (told["arch"], told["num_classes"], told["job"]) == ("resnet8", "10", job["id"])
