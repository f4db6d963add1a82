"""Where uploaded checkpoints lie under the storage root, and how jobs refer to them: the names, in one place."""

from __future__ import annotations

import re
import secrets
import time

FOLDER = "models"
ID_PATTERN = r"^model-[0-9a-f]{20}$"

_REFERENCE = re.compile(r"(?:models/)?(model-[0-9a-f]{20})/?")
_FILE = re.compile(r"models/(model-[0-9a-f]{20})/.+")


def new_model_id() -> str:
    """An id that sorts by creation time to the millisecond: ``model-`` and 20 hexadecimal digits."""
    return f"model-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"


def folder(model_id: str) -> str:
    """Folder of one model."""
    return f"{FOLDER}/{model_id}"


def file(model_id: str, filename: str) -> str:
    """The checkpoint of a model."""
    return f"{folder(model_id)}/{filename}"


def plain_filename(text: str) -> str:
    """A file name that is safe in every storage, like the one a client gave: its last part, odd characters replaced."""
    last = re.split(r"[/\\]", text)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-100:] or "weights"


def referred_to(checkpoint: str) -> str | None:
    """The model that a job means by ``models/ID`` or ``ID``; None for any other path."""
    found = _REFERENCE.fullmatch(checkpoint)
    return found[1] if found else None


def model_of(checkpoint: str) -> str | None:
    """The model whose file this path is; None for any other path."""
    found = _FILE.fullmatch(checkpoint)
    return found[1] if found else None
