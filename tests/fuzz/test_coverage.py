"""What the coverage-guided fuzzer begins with and has found; ``make fuzz-coverage`` looks for more."""

import base64
import random

import pytest

from tests.fuzz.regressions import REGRESSIONS
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_their_neighbours_break_nothing(target: str) -> None:
    generator = random.Random(0)
    TARGETS[target].call(b"")
    for seed in TARGETS[target].seeds():
        TARGETS[target].call(seed)
        for _ in range(40):
            data = bytearray(seed)
            for _ in range(generator.randint(1, 8)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            TARGETS[target].call(bytes(data))


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_breaks_nothing_any_more(target: str) -> None:
    for found in REGRESSIONS[target].values():
        TARGETS[target].call(base64.b64decode(found))
