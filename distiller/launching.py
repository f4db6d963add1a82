"""Starting the ranks of one distiller, and starting them anew when one has died: torch's elastic launcher.

``DFKD_DISTILLER_PROCESSES=4 python -m distiller.worker`` is one machine with four ranks. Several machines run torchrun
themselves, each the same line, and find each other at the rendezvous:

    torchrun --nnodes 2 --nproc-per-node 4 --max-restarts 10000 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \\
        -m distiller.worker
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import Final

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from distiller.attempt import distil
from distiller.following import follow
from distiller.ranks import RankGroup, RanksLost
from shared.jobs import Role
from shared.logs import configure_logging
from shared.networks.devices import choose_device, limit_threads
from shared.settings import Settings
from shared.worker.process import run_worker
from shared.worker.turn import Turn

RESTARTS: Final = 10_000
"""Of the group, over the life of the process: machines that are taken away for months."""

SHUTDOWN_SECONDS: Final = 12
"""A little longer than a worker takes to stop."""


def is_rank() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def launch(processes: int) -> None:
    """Runs so many ranks on this machine until a signal arrives; starts all anew whenever one dies."""
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"distiller-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "distiller.worker")
    except SignalException:
        return


def run_rank() -> None:
    """This process's part: the leader works as any distiller does, the others follow it.

    Exits with 1 when the group broke.
    """
    settings = Settings()
    configure_logging(settings)
    limit_threads(settings.threads)
    device = rank_device(settings.device)
    try:
        ranks = RankGroup(
            timeout_seconds=settings.lease_seconds, global_statistics=settings.global_batch_norm, device=device
        )
        if not ranks.is_leader:
            follow(ranks, settings, device)
            return
    except RanksLost as error:
        sys.exit(str(error))
    lost: list[RanksLost] = []
    os.environ["DFKD_DEVICE"] = str(device)
    run_worker(Role.DISTILLATION, partial(_lead, ranks, lost))
    if lost:
        ranks.break_up()
        sys.exit(str(lost[0]))
    ranks.leave()


def rank_device(setting: str) -> torch.device:
    """The device of this rank: of several GPUs, the one with its number on this machine."""
    device = choose_device(setting)
    if device.type == "cuda" and setting in ("auto", "cuda"):
        device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)
    return device


def _lead(ranks: RankGroup, lost: list[RanksLost], turn: Turn) -> None:
    try:
        distil(turn, ranks)
    except RanksLost as error:
        # The task goes back, and then this process ends, so that the launcher starts the group anew.
        lost.append(error)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
