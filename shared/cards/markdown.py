"""What the cards of a dataset and of a student have in common: text of strangers in Markdown, tables, the job.

A card is read by whoever finds it, so a name stays a name there: neither markup nor HTML. The client's ``metadata``
and ``webhook`` are for the client alone and left out.
"""

import re
from collections.abc import Sequence
from typing import Final

from shared.specs import JobSpec
from shared.text import visible, visible_json

TAG: Final = "data-free-knowledge-distillation"


def card_title(spec: JobSpec, otherwise: str) -> str:
    """The job's name on one line."""
    return visible(" ".join(spec.name.split())) or otherwise


def markdown(text: str) -> str:
    """Text of a stranger in Markdown: as it was written, neither markup nor HTML."""
    return re.sub(r"([\\`*_\[\]~$])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def in_code(text: str) -> str:
    """JSON or Python literals for a code block. Not all that shows Markdown leaves code alone, and both have other
    words for <."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def job_section(spec: JobSpec) -> str:
    """The section with the whole job."""
    text = visible_json(spec.model_dump_json(indent=2, exclude={"metadata", "webhook"}))
    return "## Job\n\n```json\n" + in_code(text) + "\n```"


def table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {left} | {right} |" for left, right in rows)]
    return "\n".join(lines)
