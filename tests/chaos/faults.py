"""What goes wrong with processes, network and files, one function a kind; with the server: ``server_faults``.

Each does its damage and returns how it ends: seconds until then, and what to call. ``None`` says that there
was nothing to harm. Everything random comes from the given generator.
"""

from __future__ import annotations

import errno
import math
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.jobs import JobRecord
from shared.storage import job_paths
from tests.chaos.cluster import LEASE_SECONDS, WORKERS, Cluster
from tests.chaos.stores import Disk

Ending = tuple[float, Callable[[], None]]

AFTER_THE_END = math.inf
"""Instead of seconds: once all jobs have ended."""


def nothing() -> None:
    """For faults that end by themselves."""


@dataclass
class Victim:
    """What the faults may harm: the cluster, and the jobs that still have a long way to go."""

    cluster: Cluster
    jobs: list[JobRecord]
    random: random.Random


Kind = Callable[[Victim], Ending | None]


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
    disk = victim.cluster.store
    if not isinstance(disk, Disk) or not disk.can_be_filled:
        return None
    filler = disk.folder / "filler"
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


def cut_network_for_long(victim: Victim) -> Ending:
    """The same for many times the lease."""
    proxy = victim.cluster.proxy
    proxy.cut()
    return victim.random.uniform(4, 6) * LEASE_SECONDS, proxy.restore


def freeze_network(victim: Victim) -> Ending:
    """What is sent does not arrive, until it all arrives late."""
    proxy = victim.cluster.proxy
    proxy.freeze()
    return victim.random.uniform(2, 9), proxy.restore


def _shard(victim: Victim) -> str | None:
    """A sealed shard of a job that has a long way to go."""
    found = [
        name
        for job in victim.jobs
        for manifest in victim.cluster.broker.shards.manifests(job.id)
        if victim.cluster.storage.exists(name := f"{job_paths.shards(job.id)}/{manifest.name}")
    ]
    return victim.random.choice(found) if found else None


def truncate_shard(victim: Victim) -> Ending | None:
    """Cuts a tar after its first sample, so that what is left reads as a valid tar."""
    name = _shard(victim)
    if name is None:
        return None

    def cut(content: bytearray) -> None:
        del content[6 * 512 :]

    victim.cluster.store.damage(name, cut)
    return 0.0, nothing


def flip_bit(victim: Victim) -> Ending | None:
    """One wrong bit somewhere in a shard."""
    name = _shard(victim)
    if name is None:
        return None

    def flip(content: bytearray) -> None:
        if content:
            content[victim.random.randrange(len(content))] ^= 1 << victim.random.randrange(8)

    victim.cluster.store.damage(name, flip)
    return 0.0, nothing


def delete_shard(victim: Victim) -> Ending | None:
    """A shard vanishes."""
    name = _shard(victim)
    if name is None:
        return None
    victim.cluster.storage.delete(name)
    return 0.0, nothing


def unmount_storage(victim: Victim) -> Ending | None:
    """The storage root is gone, as that of a volume that was unmounted together with its mount point."""
    return _take_away(victim, stand_in=False)


def empty_mount_point(victim: Victim) -> Ending | None:
    """The mount point is there and empty: files would be missing, and new ones lost."""
    return _take_away(victim, stand_in=True)


def _take_away(victim: Victim, *, stand_in: bool) -> Ending | None:
    root = Path(victim.cluster.storage.root)
    away = root.with_name("away")
    if away.exists():
        return None
    root.rename(away)
    if stand_in:
        root.mkdir()

    def bring_back() -> None:
        if root.exists():
            left = [str(path.relative_to(root)) for path in root.rglob("*")]
            if left:
                victim.cluster.exit_problems.append(f"written into the mount point of a storage that was away: {left}")
                shutil.rmtree(root)
        away.rename(root)

    return victim.random.choice([5.0, 20.0, 60.0]), bring_back


def lose_checkpoint(victim: Victim) -> Ending | None:
    """A worker dies, and the checkpoint that it left is gone."""
    storage = victim.cluster.storage
    files = [name for job in victim.jobs for name in storage.list(job_paths.work(job.id)) if name.endswith(".pt")]
    if not files:
        return None
    file = victim.random.choice(files)
    victim.cluster.signal(_worker(victim, "synthesis" if "/synthesis-" in file else "distiller"), signal.SIGKILL)
    storage.delete(file)
    return 0.0, nothing


def terminate_api(victim: Victim) -> Ending:
    """SIGTERM."""
    victim.cluster.signal("api", signal.SIGTERM)
    return 0.0, nothing


def preempt_all(victim: Victim) -> Ending:
    """SIGTERM to every worker at once, as when a zone takes its spot machines back."""
    for name in WORKERS:
        victim.cluster.signal(name, signal.SIGTERM)
    return 0.0, nothing


def freeze_all(victim: Victim) -> Ending:
    """All workers stand still past their leases, as on a machine that was suspended."""
    processes = [victim.cluster.processes[name] for name in WORKERS]
    for process in processes:
        process.send_signal(signal.SIGSTOP)

    def wake() -> None:
        for process in processes:
            process.send_signal(signal.SIGCONT)

    return LEASE_SECONDS + 4, wake


def wake_late(victim: Victim) -> Ending:
    """A synthesis worker is frozen in the middle of its task and wakes up when its job has long ended."""
    return _freeze_until_the_end(victim, "synthesis")


def wake_distiller_late(victim: Victim) -> Ending:
    """The same for a distiller."""
    return _freeze_until_the_end(victim, "distiller")


def _freeze_until_the_end(victim: Victim, role: str) -> Ending:
    name = _worker(victim, role)
    process = victim.cluster.processes[name]
    process.send_signal(signal.SIGSTOP)
    # Somebody else has to do the work meanwhile.
    victim.cluster.replace(name)
    return AFTER_THE_END, lambda: process.send_signal(signal.SIGCONT)


KINDS: tuple[Kind, ...] = (
    kill_api,
    kill_synthesis,
    kill_distiller,
    freeze_synthesis,
    freeze_distiller,
    freeze_all,
    wake_late,
    wake_distiller_late,
    terminate_api,
    terminate_synthesis,
    terminate_distiller,
    preempt_all,
    fill_disk,
    unmount_storage,
    empty_mount_point,
    cut_network,
    cut_network_for_long,
    freeze_network,
    truncate_shard,
    flip_bit,
    delete_shard,
    lose_checkpoint,
)
OF_A_DISK = {"fill_disk", "unmount_storage", "empty_mount_point"}
NETWORK = {"cut_network", "cut_network_for_long", "freeze_network"}
DAMAGE = {"truncate_shard", "flip_bit", "delete_shard", "lose_checkpoint"}
