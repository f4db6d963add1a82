"""What goes wrong with the server: it dies, forgets, hangs, refuses, and hands over to another."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import redis

from tests.chaos.faults import Ending, Kind, Victim, nothing
from tests.conftest import free_port


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


def freeze_server(victim: Victim) -> Ending:
    """It keeps its connections and answers nobody, sometimes for longer than a lease."""
    process = victim.cluster.processes["server"]
    process.send_signal(signal.SIGSTOP)
    return victim.random.choice([4.0, 12.0, 25.0]), lambda: process.send_signal(signal.SIGCONT)


def fill_server(victim: Victim) -> Ending:
    """It is full (``OOM``): everything can be read and nothing written."""
    return _configure(victim, "maxmemory", "1", "0")


def miss_replicas(victim: Victim) -> Ending:
    """It takes no writes for want of a replica (``NOREPLICAS``)."""
    return _configure(victim, "min-replicas-to-write", "1", "0")


def _configure(victim: Victim, name: str, during: str, after: str) -> Ending:
    server = victim.cluster.server()
    server.config_set(name, during)

    def restore() -> None:
        with suppress(redis.RedisError):  # started again meanwhile, and so as it was
            victim.cluster.server().config_set(name, after)

    return victim.random.uniform(3, 20), restore


def demote_server(victim: Victim) -> Ending:
    """It is a replica for a while (``READONLY``), as on the way of a failover that is called off."""
    victim.cluster.server().replicaof("127.0.0.1", str(free_port()))

    def restore() -> None:
        with suppress(redis.RedisError):
            victim.cluster.server().replicaof("NO", "ONE")

    return victim.random.uniform(3, 12), restore


def fail_over(victim: Victim) -> Ending:
    """Another server takes over: for some seconds the address still leads to the old one, which only reads by then."""
    victim.cluster.promote_replica()
    return victim.random.uniform(2, 6), victim.cluster.follow_promotion


def drop_connections(victim: Victim) -> Ending:
    """All of them, at once."""
    server = victim.cluster.server()
    server.client_kill_filter(_type="normal", skipme=True)
    return 0.0, nothing


def forget_scripts(victim: Victim) -> Ending:
    """As after a restart of which nobody has noticed anything."""
    victim.cluster.server().script_flush()
    return 0.0, nothing


SERVER_KINDS: tuple[Kind, ...] = (
    kill_server,
    crash_server_machine,
    freeze_server,
    fill_server,
    miss_replicas,
    demote_server,
    fail_over,
    drop_connections,
    forget_scripts,
)
KILLS = {"kill_api", "kill_synthesis", "kill_distiller", "lose_checkpoint", *("kill_server", "crash_server_machine")}
