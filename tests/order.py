"""Slow tests first: what starts last decides how long one worker runs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

SLOW = ("chaos", "docs", "examples", "e2e", "attack", "packaging")
"""Folders whose tests take many seconds each, the slowest first."""


def slowest_first(items: list[pytest.Item], root: Path) -> None:
    """Sorts in place, by folder only, so that tests which share a fixture stay together."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(root).parts[0]
        return SLOW.index(folder) if folder in SLOW else len(SLOW)

    items.sort(key=rank)
