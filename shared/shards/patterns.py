"""Names of several shards in one line: ``digits-{000..009}.tar``. Light, so that the API can use it."""

from __future__ import annotations

import math
import re
from itertools import product

from shared.errors import UserError

MAX_SHARDS = 100_000
NUMBER_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})", re.ASCII)


def expand_shards(pattern: str, limit: int = MAX_SHARDS) -> list[str]:
    """Names that a pattern stands for: ``{000..009}`` counts, padded as written, ``{a,b}`` lists.

    Own code rather than ``braceexpand``, which holds a whole range in memory before the first name.

    Raises:
        UserError: ``invalid_shard_pattern``: unbalanced or nested braces, or more than ``limit`` names.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # literal, group, literal, group, …, literal
    if any("{" in literal or "}" in literal for literal in pieces[::2]):
        raise UserError("invalid_shard_pattern", f"shards {pattern!r}: braces must be balanced and not nested")
    counts = [_count_choices(group) for group in pieces[1::2]]
    if math.prod(counts) > limit:
        raise UserError(
            "invalid_shard_pattern", f"shards {pattern!r} stands for {math.prod(counts):,} files; limit {limit:,}"
        )
    choices = [_choices(piece) if position % 2 else [piece] for position, piece in enumerate(pieces)]
    return ["".join(picked) for picked in product(*choices)]


def _count_choices(group: str) -> int:
    found = NUMBER_RANGE.fullmatch(group)
    return abs(int(found[2]) - int(found[1])) + 1 if found else group.count(",") + 1


def _choices(group: str) -> list[str]:
    """What one pair of braces stands for; a range may count down, and a leading zero asks for padding."""
    found = NUMBER_RANGE.fullmatch(group)
    if not found:
        return group.split(",")
    first, last = int(found[1]), int(found[2])
    padded = any(len(text) > 1 and text.startswith("0") for text in found.groups())
    width = max(map(len, found.groups())) if padded else 0
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
