"""What the package says of itself is true and says it once."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.packaging.lowest import lowest_requirements

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_newest_release_of_the_changelog_is_the_version() -> None:
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG, re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]


def test_the_version_is_written_in_one_place() -> None:
    assert version("fast-dfkd") == PROJECT["version"]
    for folder in ("shared", "synth_service", "distiller"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "__version__ =" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("path", PROJECT["license-files"])
def test_every_licence_of_what_is_shipped_is_there(path: str) -> None:
    assert list(ROOT.glob(path))


def test_every_requirement_has_a_lower_bound() -> None:
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\d.]+", each) for each in lowest_requirements())
