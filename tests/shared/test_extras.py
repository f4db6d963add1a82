"""What is missing is named with the command that installs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared import extras
from shared.extras import MissingExtra, exit_unless_installed, missing_packages, packages_of, require
from synth_service.cli import doctor
from synth_service.local.service import CannotStart, LocalService, StopSignals


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these distributions were not installed."""
    installed = extras.installed_version
    monkeypatch.setattr(extras, "installed_version", lambda name: None if name in names else installed(name))
    monkeypatch.setattr(doctor, "installed_version", extras.installed_version)


def test_the_packages_are_those_of_the_metadata() -> None:
    assert {"fastapi", "uvicorn", "jinja2"} <= set(packages_of("api"))
    assert {"torch", "numpy"} <= set(packages_of("worker"))
    assert packages_of("no-such-extra") == []
    assert missing_packages("api") == []


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "fastapi", "torch", "numpy")
    require("dfkd", ["cli"])
    with pytest.raises(MissingExtra) as caught:
        require("the service", ["api", "worker", "embedded"])
    assert str(caught.value) == (
        "the service needs fastapi, numpy, torch; install with: pip install 'fast-dfkd[api,worker]'"
    )


def test_a_process_that_cannot_run_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "uvicorn")
    with pytest.raises(SystemExit) as ending:
        exit_unless_installed("the API", ["api"])
    assert ending.value.code == 2
    assert capsys.readouterr().err == "error: the API needs uvicorn; install with: pip install 'fast-dfkd[api]'\n"


def test_the_service_does_not_start_what_would_only_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "torch")
    with StopSignals() as signals:
        service = LocalService(
            storage=str(tmp_path),
            redis_url=None,
            redis_folder=tmp_path / "redis",
            host="127.0.0.1",
            port=0,
            synth_workers=1,
            distillers=0,
            signals=signals,
            on_output=lambda name, line: None,
            on_event=lambda text: None,
        )
        with pytest.raises(CannotStart, match=r"needs torch; .*fast-dfkd\[worker\]"):
            service.__enter__()
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_what_cannot_run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "fastapi")
    monkeypatch.setenv("DFKD_STORAGE", str(tmp_path))
    (finding,) = (each for each in doctor.examine(url=None, api_key=None, storage=None) if each.check == "packages")
    assert finding.status is doctor.Status.WARNING
    assert "the API without fastapi; install with: pip install 'fast-dfkd[api]'" in finding.detail


@pytest.mark.parametrize("module", ["synth_service.worker", "distiller.worker", "synth_service.program"])
def test_an_entry_point_imports_nothing_that_may_be_missing(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'typer', 'numpy', 'psutil'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
