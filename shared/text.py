"""Text of strangers on its way to a terminal or a log: what would command the reader's program is shown, not obeyed.

Names, metadata, paths and messages come from whoever sends a job or a file. An escape sequence among them can set the
clipboard of the operator who looks at a log, and a bidirectional override shows a name as another. This is the one
place that knows which characters those are; logs and consoles pass everything through it.
"""

import json
import re
from typing import Final

_CONTROL: Final = r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and line feed
_BIDIRECTIONAL: Final = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE: Final = r"\u200b\u2028\u2029\u2060\ufeff\U000e0000-\U000e007f"
_SURROGATES: Final = r"\ud800-\udfff"

_COMMANDING: Final = re.compile(f"[{_CONTROL}{_BIDIRECTIONAL}{_INVISIBLE}{_SURROGATES}]")


def visible(text: str) -> str:
    """The text with control, bidirectional, invisible and unpaired characters written out, as ``\\x1b``.

    Tabs and line feeds stay.
    """
    return _COMMANDING.sub(_written_out, text) if not text.isascii() or not text.isprintable() else text


def visible_line(text: str) -> str:
    """As ``visible``, on one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_json(text: str) -> str:
    """JSON that means the same, with the same characters written as JSON writes them."""
    return _COMMANDING.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _written_out(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
