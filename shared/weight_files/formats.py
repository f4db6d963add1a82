"""Which format a checkpoint file has, told from its first bytes: for the checker and the loader alike."""

from __future__ import annotations

from typing import Final

START_BYTES: Final = 9
"""As many are looked at."""


def is_safetensors(start: bytes, file_bytes: int) -> bool:
    """Whether a file of so many bytes that begins so is a safetensors file, or a damaged one.

    It begins with the length of its header, little-endian in eight bytes, and the brace of that header. The lowest byte
    of the length may be that of a pickle (0x80), or the lowest two those of a zip (``PK``); but read as a length,
    a pickle's or a zip's first eight bytes come to far more than any file has.
    """
    return start[8:START_BYTES] == b"{" and int.from_bytes(start[:8], "little") < max(file_bytes, 2**40)
