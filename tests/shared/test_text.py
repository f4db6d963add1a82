"""Strangers' text on a terminal: shown, not obeyed."""

import json
import subprocess
import sys

import pytest

from shared.text import visible, visible_line

HOSTILE = {
    "the clipboard": "\x1b]52;c;aGk=\x07",
    "the screen": "\x1b[2J\x1b[H",
    "a title": "\x9d0;owned\x9c",
    "a forged line": "x\r\n2026-01-01 [error] forged",
    "right to left": "model\u202egnp.exe",
    "isolates": "\u2066a\u2069",
    "nothing at all": "\u200b\ufeff\u2060\U000e0041",
    "a line separator": "a\u2028b\u2029c",
    "half a character": "a\ud83d",
    "deleting": "abc\x08\x08\x7f",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_commands_a_terminal_is_written_out(what: str) -> None:
    shown = visible_line(HOSTILE[what])
    assert shown.isprintable()
    assert "\\" in shown
    shown.encode()


@pytest.mark.parametrize("text", ["", "plain", "Größe 日本語 🦊", "عربي", "tab\tand\nline"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


PROGRAM = """
import json, logging, sys
from shared.logs import configure_logging
from shared.settings import Settings
import structlog
hostile = json.loads(sys.argv[1])
configure_logging(Settings(log_format=sys.argv[2]))
logger = structlog.get_logger()
for text in hostile:
    logger.warning(text, **{"field": text, "nested": {"a": [text]}, "error": ValueError(text)})
    logging.getLogger("library").warning("of %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("failed")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_log_line_commands_a_terminal(form: str) -> None:
    written = json.dumps(list(HOSTILE.values()))
    done = subprocess.run([sys.executable, "-c", PROGRAM, written, form], capture_output=True, check=True)
    text = done.stderr.decode()
    assert visible(text) == text
    # Tracebacks have lines of their own in the form for people; nothing else has.
    forged = [line for line in text.splitlines() if line.startswith("2026-01-01 [error] forged")]
    assert len(forged) <= (1 if form == "console" else 0)
