"""Groups of ranks for tests: processes on this machine that run the same function."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distiller.ranks import RankGroup
from tests.conftest import free_port

TIMEOUT_SECONDS = 20.0


def in_group(folder: Path, count: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """What ``function(ranks, *arguments)`` returns in each of so many ranks.

    Args:
        folder: empty; for the answers.
        count: of ranks.
        function: of a module, so that a new process finds it.
        arguments: what pickle takes.
        options: of ``RankGroup``.
    """
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=_run, args=(folder, rank, count, port, function, arguments, options))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(count)]


def _run(
    folder: Path,
    rank: int,
    count: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    chosen = {"timeout_seconds": TIMEOUT_SECONDS, "global_statistics": True, **options}
    ranks = RankGroup(device=torch.device("cpu"), **chosen)
    answer = function(ranks, *arguments)
    (folder / str(rank)).write_bytes(pickle.dumps(answer))
    torch.distributed.destroy_process_group()
