"""Every line of the threat model names tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API_TESTS = ROOT / "tests/synth_service/api"
PAGE = ROOT / "docs/security.md"
TEST_NAME = re.compile(r"`(?P<file>[\w/]+\.py)::(?P<name>\w+)`")


def threats() -> dict[str, str]:
    """What each threat of the table is shown by."""
    table = PAGE.read_text().partition("## Threats")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {threat: shown for threat, _, shown in rows[2:]}


def test_there_are_threats() -> None:
    assert len(threats()) > 20


@pytest.mark.parametrize("threat", threats())
def test_what_shows_it_exists(threat: str) -> None:
    named = TEST_NAME.findall(threats()[threat])
    assert named
    assert len(named) == threats()[threat].count("`") / 2, "something is named that is no test"
    for file, name in named:
        path = ROOT / file if file.startswith("tests/") else API_TESTS / file
        functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path} has no {name}"
        assert name.startswith("test_")
