"""What goes wrong, one function a kind.

Each does its damage and returns how it ends: seconds until then, and what to call. ``None`` says that there
was nothing to harm. Everything random comes from the given generator.
"""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.jobs import JobRecord
from shared.storage import job_paths
from tests.chaos.cluster import LEASE_SECONDS, Cluster

Ending = tuple[float, Callable[[], None]]


def nothing() -> None:
    """For faults that end by themselves."""


@dataclass
class Victim:
    """What the faults may harm: the cluster, and the jobs that still have a long way to go."""

    cluster: Cluster
    jobs: list[JobRecord]
    random: random.Random


def _worker(victim: Victim, role: str) -> str:
    """A worker of a role, rather one that has a task."""
    named = [f"{role}-1", f"{role}-2"]
    victim.random.shuffle(named)
    stage = "synthesis" if role == "synthesis" else "distillation"
    busy = {
        worker
        for job in victim.jobs
        if (found := getattr(job.stages, stage)) is not None and found.worker
        for worker in found.worker.split(", ")
    }
    pids = {worker.rpartition("-")[2] for worker in busy}
    return next((name for name in named if str(victim.cluster.processes[name].pid) in pids), named[0])


def kill_api(victim: Victim) -> Ending:
    """SIGKILL."""
    victim.cluster.signal("api", signal.SIGKILL)
    return 0.0, nothing


def kill_synthesis(victim: Victim) -> Ending:
    """SIGKILL."""
    victim.cluster.signal(_worker(victim, "synthesis"), signal.SIGKILL)
    return 0.0, nothing


def kill_distiller(victim: Victim) -> Ending:
    """SIGKILL."""
    victim.cluster.signal(_worker(victim, "distiller"), signal.SIGKILL)
    return 0.0, nothing


def kill_server(victim: Victim) -> Ending:
    """SIGKILL; it starts again on the same files after up to two seconds."""
    cluster = victim.cluster
    cluster.rest("server")
    cluster.signal("server", signal.SIGKILL)
    return victim.random.uniform(0, 2), lambda: cluster.wake("server")


def crash_server_machine(victim: Victim) -> Ending:
    """The server dies and its append-only file lacks the last second, as after a power cut with ``everysec``."""
    cluster = victim.cluster
    cluster.rest("server")
    process = cluster.processes["server"]
    process.kill()
    process.wait()
    limit = time.monotonic() - 1.0
    before = [(file, size) for moment, file, size in cluster.aof_sizes if moment <= limit]
    if before:
        file, size = before[-1]
        with suppress(FileNotFoundError), file.open("r+b") as opened:
            opened.truncate(min(size, file.stat().st_size))
    cluster.aof_sizes.clear()
    return victim.random.uniform(0, 2), lambda: cluster.wake("server")


def freeze_synthesis(victim: Victim) -> Ending:
    """SIGSTOP past the lease, then SIGCONT: what wakes up is a zombie."""
    return _freeze(victim, "synthesis")


def freeze_distiller(victim: Victim) -> Ending:
    """The same for a distiller."""
    return _freeze(victim, "distiller")


def _freeze(victim: Victim, role: str) -> Ending:
    process = victim.cluster.processes[_worker(victim, role)]
    process.send_signal(signal.SIGSTOP)
    return LEASE_SECONDS + 4, lambda: process.send_signal(signal.SIGCONT)


def terminate_synthesis(victim: Victim) -> Ending:
    """SIGTERM: 0 within ten seconds."""
    victim.cluster.signal(_worker(victim, "synthesis"), signal.SIGTERM)
    return 0.0, nothing


def terminate_distiller(victim: Victim) -> Ending:
    """SIGTERM: 0 within ten seconds."""
    victim.cluster.signal(_worker(victim, "distiller"), signal.SIGTERM)
    return 0.0, nothing


def fill_disk(victim: Victim) -> Ending | None:
    """Nothing more can be written to the storage for some seconds."""
    cluster = victim.cluster
    if not cluster.has_own_disk:
        return None
    filler = cluster.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        block = b"\0" * 65_536
        while block:
            try:
                file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]
    return victim.random.uniform(3, 8), lambda: filler.unlink(missing_ok=True)


def cut_network(victim: Victim) -> Ending:
    """Everybody loses the server, mostly for some seconds and sometimes for 30."""
    proxy = victim.cluster.proxy
    proxy.cut()
    return victim.random.choice([2.0, 5.0, 8.0, 30.0]), proxy.restore


def freeze_network(victim: Victim) -> Ending:
    """What is sent does not arrive, until it all arrives late."""
    proxy = victim.cluster.proxy
    proxy.freeze()
    return victim.random.uniform(2, 9), proxy.restore


def _shard(victim: Victim) -> Path | None:
    """A sealed shard of a job that has a long way to go."""
    found = [
        path
        for job in victim.jobs
        for manifest in victim.cluster.broker.shards.manifests(job.id)
        if (path := victim.cluster.storage.local_path(f"{job_paths.shards(job.id)}/{manifest.name}")) is not None
        and path.exists()
    ]
    return victim.random.choice(found) if found else None


def truncate_shard(victim: Victim) -> Ending | None:
    """Cuts a tar after its first sample, so that what is left reads as a valid tar."""
    path = _shard(victim)
    if path is None:
        return None
    with suppress(FileNotFoundError), path.open("r+b") as file:
        file.truncate(6 * 512)
    return 0.0, nothing


def flip_bit(victim: Victim) -> Ending | None:
    """One wrong bit somewhere in a shard."""
    path = _shard(victim)
    if path is None:
        return None
    with suppress(FileNotFoundError), path.open("r+b") as file:
        place = victim.random.randrange(path.stat().st_size)
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 1 << victim.random.randrange(8)]))
    return 0.0, nothing


def delete_shard(victim: Victim) -> Ending | None:
    """A shard vanishes."""
    path = _shard(victim)
    if path is None:
        return None
    path.unlink(missing_ok=True)
    return 0.0, nothing


KINDS: dict[str, Callable[[Victim], Ending | None]] = {
    kind.__name__: kind
    for kind in (
        kill_api,
        kill_synthesis,
        kill_distiller,
        kill_server,
        crash_server_machine,
        freeze_synthesis,
        freeze_distiller,
        terminate_synthesis,
        terminate_distiller,
        fill_disk,
        cut_network,
        freeze_network,
        truncate_shard,
        flip_bit,
        delete_shard,
    )
}
DAMAGE = {"truncate_shard", "flip_bit", "delete_shard"}
KILLS = {"kill_api", "kill_synthesis", "kill_distiller", "kill_server", "crash_server_machine"}
