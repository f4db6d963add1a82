"""The processes of one distiller, and what they do together.

A distiller is one process, or a group of them on several devices and machines (``distiller.launching``). Of a group
the *leader* does what a distiller does: it holds the lease, reads the shards, decides, keeps the checkpoints. The
others *follow* (``distiller.following``): before every step that needs them the leader tells them what comes, through
torch's store, where they wait as long as it takes; then all do it together, by collectives, which must not take longer
than a lease. Every rank works on its part of each batch, and gradients are averaged, so that a batch is as large, and
means the same, whatever the number of ranks.

``Ranks`` is a process that is alone, for which all of this is trivial.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import structlog
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

logger = structlog.get_logger()

JOIN_SECONDS: Final = 300.0
"""How long the ranks of a group wait for each other at the start."""

POLL_SECONDS: Final = 1.0
COMMANDS_KEPT: Final = 1000
"""No follower is ever so far behind: most commands are carried out together."""

_BUFFER_OPTION: Final = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # what it was called before torch 2.14
    if name in inspect.signature(DistributedDataParallel).parameters
)


class RanksLost(Exception):
    """Another rank of the group is gone or does not answer; this group cannot go on."""


class Ranks:
    """A process that is alone: the leader of nobody, and every batch is its own."""

    count: int = 1
    rank: int = 0
    global_statistics: bool = False
    """Whether BatchNorm layers normalize with the whole batch's statistics instead of those of a rank's part."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This rank's part of a batch of so many images; the parts differ by one at most."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def tell(self, command: str, argument: object = None, *, payload: object = None) -> None:
        """Has the followers carry out a command, which the leader then does as well.

        Args:
            command: see ``distiller.following``.
            argument: what JSON holds.
            payload: anything else, such as images.

        Raises:
            RanksLost: they cannot.
        """

    def averaging(self, module: nn.Module) -> nn.Module:
        """The module, but so that ``backward`` leaves the mean of all ranks' gradients."""
        return module

    def average(self, values: Tensor) -> None:
        """Replaces the values by their mean over the ranks."""

    def exchange(self, mine: Tensor | None) -> list[Tensor]:
        """What each rank gives, in their order and on any device; those that give None are left out."""
        return [] if mine is None else [mine]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Turns the many errors of a collective into one.

        Raises:
            RanksLost: in place of them.
        """
        yield


class RankGroup(Ranks):
    """One of several processes that torch's launcher has started.

    Args:
        timeout_seconds: how long a collective may take.
        global_statistics: see ``Ranks``.
        device: where tensors are; NCCL averages those of CUDA, gloo all others.

    Raises:
        RanksLost: the others did not come.
    """

    def __init__(self, *, timeout_seconds: float, global_statistics: bool, device: torch.device) -> None:
        self.count, self.rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        self.global_statistics = global_statistics
        self._commands = 0
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        hosts_store = self.is_leader and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        with self.together():
            store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                world_size=self.count,
                is_master=hosts_store,
                timeout=timedelta(seconds=JOIN_SECONDS),
                wait_for_workers=False,
            )
            self._store = PrefixStore(f"dfkd/{attempt}", store)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.count,
                timeout=timedelta(seconds=timeout_seconds),
            )
            self._control: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            self._members: list[Any] = [None] * self.count
            dist.all_gather_object(self._members, [socket.gethostname(), os.getpid()])
        logger.info("ranks_joined", rank=self.rank, ranks=self.count)

    def tell(self, command: str, argument: object = None, *, payload: object = None) -> None:
        """See the base class. What a follower does, it was told."""
        if not self.is_leader:
            return
        with self.together():
            self._store.set(f"command/{self._commands}", json.dumps([command, argument, payload is not None]))
            self._store.delete_key(f"command/{self._commands - COMMANDS_KEPT}")
            self._commands += 1
            if payload is not None:
                dist.broadcast_object_list([payload], src=0, group=self._control)

    def hear(self) -> tuple[str, Any, Any]:
        """A follower's next command, with its argument and payload; waits as long as it takes.

        Raises:
            RanksLost: the group has ended.
        """
        key = f"command/{self._commands}"
        while True:
            try:
                self._store.wait([key], timedelta(seconds=POLL_SECONDS))
                break
            except dist.DistStoreError:
                continue  # nothing yet
            except RuntimeError as error:
                raise RanksLost(str(error)) from error
        self._commands += 1
        with self.together():
            command, argument, has_payload = json.loads(self._store.get(key))
            content: list[Any] = [None]
            if has_payload:
                dist.broadcast_object_list(content, src=0, group=self._control)
        return command, argument, content[0]

    def averaging(self, module: nn.Module) -> nn.Module:
        """See the base class."""
        # A student may have parameters without a gradient; the graph of one step is that of every other.
        options: dict[str, Any] = {_BUFFER_OPTION: not self.global_statistics}
        with self.together():
            return DistributedDataParallel(module, static_graph=True, **options)

    def average(self, values: Tensor) -> None:
        """See the base class."""
        with self.together():
            dist.all_reduce(values)
        values /= self.count

    def sum(self, values: Tensor) -> None:
        """Replaces the values by their sum over the ranks."""
        dist.all_reduce(values)

    def stack(self, values: Tensor) -> Tensor:
        """(ranks, …): the values of every rank, in their order."""
        gathered = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(gathered, values)
        return torch.stack(gathered)

    def exchange(self, mine: Tensor | None) -> list[Tensor]:
        """See the base class."""
        given: list[Any] = [None] * self.count
        with self.together():
            dist.all_gather_object(given, None if mine is None else mine.cpu(), group=self._control)
        return [each for each in given if each is not None]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """See the base class."""
        try:
            yield
        except RuntimeError as error:
            # Gloo has no type of its own, but names its source.
            if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
                raise RanksLost(f"rank {self.rank} of {self.count}: {str(error).splitlines()[0]}") from error
            raise

    def leave(self) -> None:
        """The leader sends its followers home."""
        with contextlib.suppress(RanksLost):
            self.tell("leave")
        dist.destroy_process_group()

    def break_up(self) -> None:
        """Ends the followers of this machine, one of which may be frozen and would be waited for."""
        host = socket.gethostname()
        for rank, (where, pid) in enumerate(self._members):
            if where == host and rank != self.rank:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
