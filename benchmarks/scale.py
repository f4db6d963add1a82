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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.fleet import claim, digits_spec, measure_workers, processor_seconds, server
from benchmarks.records import Record, command_line, finish, provenance, say, table
from shared.broker import Broker
from shared.jobs import Role, State
from shared.shards.manifest import ShardManifest, shard_name
from shared.specs import JobSpec

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


def memory_bytes(broker: Broker) -> int:
    """What the server's data takes."""
    return broker.statistics.memory()[0]


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
    result["workers"] = measure_workers(sizes.workers, sizes.idle_share, sizes.seconds)
    result["shards"] = measure_shards(sizes)
    finish("scale", result, describe(result), options)


if __name__ == "__main__":
    main()
