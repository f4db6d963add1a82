"""The one rule for everything random: a job's seed and a purpose in words give a generator of its own.

Two purposes never share a stream, so no draw depends on how many another part of the program made, and whoever
follows the rule (service, notebook, benchmark) draws the same. The purposes of a whole job are named here; parts
name further ones from the seed that they are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

STUDENT: Final = "student initialization"
SAMPLING: Final = "pool sampling"
TRAINING: Final = "training"
PROCEDURAL: Final = "procedural images"


def derived_seed(seed: int, purpose: str) -> int:
    """A 64-bit signed seed for one purpose. Equal arguments give the same number on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def partition_seed(seed: int, partition: int = 0) -> int:
    """What the inverter of one partition of a job is seeded with."""
    return derived_seed(seed, f"synthesis of partition {partition}")


def generator(seed: int, purpose: str, device: torch.device | None = None) -> torch.Generator:
    """A generator for one purpose, on the CPU unless said otherwise."""
    return torch.Generator(device or torch.device("cpu")).manual_seed(derived_seed(seed, purpose))


@contextmanager
def seeded_globally(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generator of the CPU for a while, for code that draws from nothing else, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, purpose))
        yield
