"""What the probes of both halves share: a stopwatch that stops in time, and a process that reads a job and answers.

A probe is a process of its own, so that its peak of memory is that of the work, and begins like a worker does.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from shared.networks.devices import choose_device, describe_device, limit_threads
from shared.settings import Settings
from shared.specs import JobSpec
from shared.specs.probes import Probe

BUDGET_SECONDS = 12.0
FEWEST_UNITS = 3


class Enough(Exception):
    """The budget is spent."""


class Stopwatch:
    """Times units (rounds or steps) one after another until the budget is spent.

    The first is not counted: libraries choose their kernels in it, and memory is allocated.

    Args:
        budget_seconds: after which no further unit begins, once there are ``FEWEST_UNITS``.
        clock: seconds.
    """

    def __init__(self, budget_seconds: float = BUDGET_SECONDS, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._budget = budget_seconds
        self._started: float | None = None
        self._last = 0.0
        self.laps: list[float] = []

    def lap(self) -> None:
        """Called at the end of every unit.

        Raises:
            Enough: there is nothing more to learn.
        """
        moment = self._clock()
        if self._started is None:
            self._started = self._last = moment
            return
        self.laps.append(moment - self._last)
        self._last = moment
        if moment - self._started > self._budget and len(self.laps) >= FEWEST_UNITS:
            raise Enough

    @property
    def seconds(self) -> float:
        """Of a unit: the median, which a disturbance of one does not move."""
        return median(self.laps)


def answer_probe(measure: Callable[[JobSpec, torch.device], tuple[float, int]]) -> None:
    """Reads a job as JSON from stdin, measures, and writes the ``Probe`` as JSON to stdout.

    Args:
        measure: (spec, device) → seconds of a unit, and how many were measured.
    """
    settings = Settings()
    limit_threads(settings.threads)
    device = choose_device(settings.device)
    spec = JobSpec.model_validate_json(sys.stdin.read())
    seconds, measured = measure(spec, device)
    probe = Probe(
        seconds=seconds, measured=measured, peak_bytes=peak_bytes(device), device=describe_device(device)["name"]
    )
    print(probe.model_dump_json(), flush=True)  # noqa: T201


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: of the device if it is a GPU, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
