"""The documentation is complete, and builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.command_line import PAGE, page
from tests.e2e.service import REPOSITORY

RAISED = re.compile(r'(?:UserError|Problem|JobError)\(\s*(?:\d{3},\s*)?(?:code=)?"([a-z]+_[a-z_]+)"')


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python docs/command_line.py"


def test_every_code_of_an_error_is_explained() -> None:
    sources = [
        path for folder in ("shared", "synth_service", "distiller") for path in (REPOSITORY / folder).rglob("*.py")
    ]
    raised = {code for path in sources for code in RAISED.findall(path.read_text(encoding="utf-8"))}
    explained = set(re.findall(r"`([a-z_]+)`", (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")))
    assert len(raised) > 40
    assert raised - explained == set()


@pytest.mark.timeout(120)
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()
