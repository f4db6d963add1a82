"""Facts of a teacher, one question each: given as an option, known from its files, typed at a terminal, or guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer
from rich.markup import escape

from shared.specs.architectures import check_architecture
from shared.specs.normalizations import NORMALIZATIONS
from synth_service.cli.outcomes import ExitCode, fail, messages

Value = TypeVar("Value")


class Facts:
    """Finds facts one after another, and remembers which the file told and which are guesses."""

    def __init__(self, ask: bool) -> None:
        self._ask = ask
        self.known: list[str] = []
        self.guesses: list[tuple[str, str, str]] = []

    def find(
        self,
        question: str,
        option: str,
        parse: Callable[[str], Value],
        *,
        given: object = None,
        known: object = None,
        guess: object = None,
        help: str = "",
    ) -> Value:
        """The answer that was given, that the file tells, that is typed or guessed; ends the command without any."""
        what = question.partition(" (")[0].removesuffix(" in pixels").removesuffix(" it was trained with")
        certain = known if given is None else given
        if given is None and known is not None:
            self.known.append(f"{what} {known}")
        if certain is None and guess is not None and not self._ask:
            self.guesses.append((what, str(guess), option))
            certain = guess
        if certain is not None:
            try:
                return parse(str(certain))
            except ValueError as error:
                fail(f"{option}: {error}", ExitCode.USAGE)
        if not self._ask:
            fail(f"the file does not tell the {what}; give it with {option}: {help or question}", ExitCode.USAGE)
        if help:
            messages.print(f"[dim]{escape(help)}[/]")
        while True:
            try:
                # The question is on stderr, as all that is no result.
                return parse(typer.prompt(question, default=None if guess is None else str(guess), err=True))
            except ValueError as error:
                messages.print(f"[red]{escape(str(error))}[/]")
            except typer.Abort:
                raise typer.Exit(ExitCode.INTERRUPTED) from None


def listed(values: tuple[float, ...]) -> str:
    """As options write them: with commas."""
    return ",".join(map(str, values))


def known_arch(text: str) -> str:
    """The name itself. Raises ValueError where it is unknown or malformed."""
    check_architecture(text)
    return text


def count(text: str) -> int:
    """A whole number from 1 on. Raises ValueError for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no number of them")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    """Height and width of `224` or `28x24`. Raises ValueError for any other text."""
    height, x, width = text.lower().partition("x")
    return count(height), count(width if x else height)


def named(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A normalization by its name, or as MEAN/STD."""
    return next((name for name, each in NORMALIZATIONS.items() if each == (mean, std)), f"{listed(mean)}/{listed(std)}")


def normalization(text: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, by name or as MEAN/STD. Raises ValueError for any other text."""
    if text in NORMALIZATIONS:
        mean, std = NORMALIZATIONS[text]
    else:
        parts = text.split("/")
        if len(parts) != 2:
            raise ValueError(f"{text!r} is neither MEAN/STD nor one of {', '.join(NORMALIZATIONS)}")
        mean, std = (tuple(float(each) for each in part.split(",")) for part in parts)
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise ValueError(f"give one value, or one for each of the {channels} channels")
    return mean, std
