"""Small DeepLabs train on a CPU in the memory format that the trainer uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAIN = """
import torch
from shared.networks.definitions.deeplab import SmallDeepLab
torch.set_num_threads(1)
network = SmallDeepLab(11, 1, width={width}).to(memory_format=torch.channels_last)
for _ in range(20):
    images = torch.randn(16, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    network(images).square().mean().backward()
assert network(torch.randn(2, 1, 50, 37)).shape == (2, 11, 50, 37)
"""


@pytest.mark.parametrize("width", [4, 8])
def test_training_steps_leave_memory_whole(width: int) -> None:
    """In a process of its own: what went wrong here (see ``Shortcut``) ended the process."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN.format(width=width)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
