"""A worker out of memory says which field asked for it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from shared.jobs import Role
from shared.networks.devices import is_out_of_memory
from shared.worker.memory import memory_of_machine, out_of_memory
from tests.specs import small_job

PROGRAM = """
import torch
from shared.networks.devices import is_out_of_memory
from shared.worker.memory import limit_memory
limit_memory(torch.device("cpu"), 1_000_000_000)
for take in (lambda: torch.ones(500_000_000), lambda: bytearray(2_000_000_000)):
    try:
        take()
    except Exception as error:
        assert is_out_of_memory(error), repr(error)
    else:
        raise SystemExit("there was memory")
"""


def test_an_allocation_beyond_the_limit_fails_and_kills_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_libraries_raise_is_recognized() -> None:
    for take in (lambda: torch.empty(2**60), lambda: np.empty(2**50), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            take()
        assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("something else"))


def test_the_machine_has_some() -> None:
    assert memory_of_machine() > 100_000_000


@pytest.mark.parametrize(
    ("role", "field"), [(Role.SYNTHESIS, "synthesis.batch_size"), (Role.DISTILLATION, "distillation.batch_size")]
)
def test_the_message_names_the_field_and_its_value(role: Role, field: str) -> None:
    told = out_of_memory(role, small_job(), MemoryError("no room\nmore"))
    assert told.code == "out_of_memory"
    assert field in told.message
    assert "no room" in told.message
    assert "\n" not in told.message
