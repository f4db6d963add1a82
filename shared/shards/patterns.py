"""Names of several shards in one line: ``digits-{000..009}.tar``. Light, so that the API can use it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

from shared.errors import UserError

MAX_SHARDS: Final = 100_000
MAX_CHARACTERS: Final = 10_000_000
"""Of all names together: a pattern of a kilobyte must not stand for a hundred megabytes."""

NUMBER_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})", re.ASCII)
SHOWN_CHARACTERS: Final = 200
"""Of a pattern in a message."""


def expand_shards(pattern: str, limit: int = MAX_SHARDS) -> Iterator[str]:
    """Names that a pattern stands for: ``{000..009}`` counts, padded as written, ``{a,b}`` lists.

    The pattern is checked at once, the names come one by one: no list of them is ever held.

    Raises:
        UserError: ``invalid_shard_pattern``: unbalanced or nested braces, more than ``limit`` names, or names of more
            than ``MAX_CHARACTERS`` in all.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # literal, group, literal, group, …, literal
    shown = repr(pattern[:SHOWN_CHARACTERS]) + ("…" if len(pattern) > SHOWN_CHARACTERS else "")
    if any("{" in literal or "}" in literal for literal in pieces[::2]):
        raise UserError("invalid_shard_pattern", f"shards {shown}: braces must be balanced and not nested")
    groups = [_choices(group) for group in pieces[1::2]]
    count = math.prod(map(len, groups))
    if count > limit:
        raise UserError("invalid_shard_pattern", f"shards {shown} stands for {count:,} files; limit {limit:,}")
    characters = count * (sum(map(len, pieces[::2])) + sum(each.longest for each in groups))
    if characters > MAX_CHARACTERS:
        raise UserError(
            "invalid_shard_pattern",
            f"shards {shown} stands for names of up to {characters:,} characters in all; limit {MAX_CHARACTERS:,}. "
            "Use shorter names or fewer files",
        )
    return _names(pieces[::2], groups, count)


class _List:
    """``{a,b}``."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self.longest = max(map(len, texts))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, position: int) -> str:
        return self._texts[position]


class _Range:
    """``{000..009}``, which may count down; a leading zero asks for padding."""

    def __init__(self, first: str, last: str) -> None:
        padded = any(len(text) > 1 and text.startswith("0") for text in (first, last))
        self.longest = max(len(first), len(last))
        self._width = self.longest if padded else 0
        step = 1 if int(first) <= int(last) else -1
        self._numbers = range(int(first), int(last) + step, step)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: int) -> str:
        return f"{self._numbers[position]:0{self._width}d}"


def _choices(group: str) -> _List | _Range:
    """What one pair of braces stands for."""
    found = NUMBER_RANGE.fullmatch(group)
    return _Range(found[1], found[2]) if found else _List(group.split(","))


def _names(literals: Sequence[str], groups: Sequence[_List | _Range], count: int) -> Iterator[str]:
    """The names in order: the last group counts fastest."""
    for number in range(count):
        parts = [literals[-1]]
        for literal, group in zip(literals[-2::-1], reversed(groups), strict=True):
            number, position = divmod(number, len(group))
            parts += group[position], literal
        yield "".join(reversed(parts))
