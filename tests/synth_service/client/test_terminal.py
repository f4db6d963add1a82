"""Consoles show strangers' text, whatever it is wrapped in, and keep their own styles."""

import io

import pytest
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from shared.text import visible
from synth_service.client.terminal import Terminal
from tests.shared.test_text import HOSTILE

EVERYTHING = "".join(HOSTILE.values()).replace("\r\n", "")


def table() -> Table:
    found = Table(EVERYTHING, title=EVERYTHING)
    found.add_row(EVERYTHING)
    return found


@pytest.mark.parametrize(
    "shown", [EVERYTHING, Text(EVERYTHING), Panel(EVERYTHING), table()], ids=lambda each: type(each).__name__
)
def test_strangers_text_is_shown(shown: RenderableType) -> None:
    console = Terminal(file=io.StringIO(), width=400)
    console.print(shown, markup=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert visible(text) == text
    assert "\\x1b" in text


def test_styles_of_our_own_still_reach_the_terminal() -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    console.print("[bold]loud[/] and \x1b[2J")
    assert "\x1b[1mloud\x1b[0m and \\x1b[2J" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_live_display_is_filtered_too() -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(console=console) as progress:
        progress.add_task("\x1b]52;c;aGk=\x07", total=1)
    assert "\x1b]52" not in console.file.getvalue()  # type: ignore[attr-defined]
