"""What keeps the house easy to find one's way in: small modules, few loose ones."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400
MOST_LOOSE_MODULES = 12


@pytest.mark.parametrize("folder", ["shared", "synth_service", "distiller", "tests", "benchmarks", "examples", "docs"])
def test_no_module_is_longer_than_one_sitting(folder: str) -> None:
    lines = {path: path.read_text("utf-8").count("\n") for path in sorted((ROOT / folder).rglob("*.py"))}
    too_long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MOST_LINES}
    assert lines
    assert not too_long, f"split these (at most {MOST_LINES} lines): {too_long}"


def test_what_both_halves_share_has_rooms() -> None:
    loose = sorted(path.name for path in (ROOT / "shared").glob("*.py"))
    assert len(loose) <= MOST_LOOSE_MODULES, f"give some of these a folder: {loose}"
