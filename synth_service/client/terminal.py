"""A console that shows strangers' text and never obeys it: whatever is printed passes through ``shared.text``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from shared.text import visible


class Terminal(Console):
    """A rich console whose own styles and movements reach the terminal, and nobody else's.

    Everything that rich shows, a table's cell or a live display, is rendered here before it is written.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does it, with all text made visible. Controls are the console's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
