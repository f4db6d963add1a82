"""Does the API stay quick while both workers compute? ``python -m benchmarks.api --json``

A service with all its real processes runs the digits job, made long, on the cores that the benchmark has to
share with it. Meanwhile many clients, each on one connection that it keeps, poll a job of their own with the
``ETag`` of the poll before, as ``synth_service.client`` does. First each of them polls once a second (*paced*); then
each polls again as soon as it has its answer (*closed loop*), which shows the most that the API can give.

A latency is what a client sees, from sending to the last byte, its own waiting for a core included: the
clients are one process on the same cores. It has the API's priority, which is above the workers', as
``dfkd up`` arranges it. Redis round trips are those of the API's connections, counted by the server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.digits import digits_fields
from benchmarks.records import Record, command_line, finish, provenance, say, table
from benchmarks.service import MeasuredService, measured_service

TARGET_P99_MILLISECONDS = 50.0
TARGET_RESIDENT_MIB = 150.0
BUSY_SECONDS = 120.0
MEBIBYTE = 2**20


@dataclass
class Polls:
    """What the clients of one phase saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def note(self, latency: float, status: int) -> None:
        """One answer."""
        self.latencies.append(latency)
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def summary(self) -> Record:
        """Latencies in milliseconds and the rate."""
        milliseconds = np.array(self.latencies) * 1000
        return {
            "seconds": round(self.seconds, 2),
            "requests": len(self.latencies),
            "requests_per_second": round(len(self.latencies) / self.seconds, 1),
            "p50_ms": round(float(np.percentile(milliseconds, 50)), 2),
            "p99_ms": round(float(np.percentile(milliseconds, 99)), 2),
            "max_ms": round(float(milliseconds.max()), 2),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }


async def poll_forever(
    session: aiohttp.ClientSession, url: str, polls: Polls, until: float, pause: float, start: float
) -> None:
    """One client. ``start`` spreads the clients over the first ``pause`` seconds."""
    tag = ""
    due = start
    while (now := time.monotonic()) < until:
        if now < due:
            await asyncio.sleep(due - now)
            continue
        sent = time.perf_counter()
        async with session.get(url, headers={"If-None-Match": tag} if tag else {}) as response:
            await response.read()
            polls.note(time.perf_counter() - sent, response.status)
            tag = response.headers.get("ETag", "")
        # From when it was due and not from the answer: a slow answer must not lower the rate that it is measured at.
        due = due + pause if pause else 0.0


async def poll_jobs(urls: Sequence[str], seconds: float, pause: float) -> Polls:
    """All clients at once, each on a connection of its own."""
    polls = Polls()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        # The connections are there before the clock starts.
        await asyncio.gather(*(poll_forever(session, url, Polls(), time.monotonic() + 0.2, 10, 0.0) for url in urls))
        started = time.monotonic()
        clients = (
            poll_forever(session, url, polls, started + seconds, pause, started + pause * number / len(urls))
            for number, url in enumerate(urls)
        )
        await asyncio.gather(*clients)
        polls.seconds = time.monotonic() - started
    return polls


def measure(service: MeasuredService, options: argparse.Namespace) -> Record:
    """Queues the jobs, waits until both workers are busy, and polls."""
    fields = digits_fields()
    fields["synthesis"]["num_images"] = 4_000_000
    fields["distillation"]["steps"] = 1_000_000
    jobs = [service.submit(fields) for _ in range(options.clients)]
    service.wait(lambda: service.kd_steps(jobs[0]) > 0, BUSY_SECONDS, "the workers are not both busy")
    urls = [f"{service.url}/jobs/{job}" for job in jobs]
    api = psutil.Process(service.pid("api"))
    found: Record = {"resident_mib_before": round(api.memory_info().rss / MEBIBYTE, 1)}
    for name, pause in (("paced", 1.0), ("closed_loop", 0.0)):
        steps, commands, cpu = service.kd_steps(jobs[0]), service.redis_commands(api), sum(api.cpu_times()[:2])
        polls = asyncio.run(poll_jobs(urls, options.seconds, pause))
        summary = polls.summary()
        summary["redis_commands_per_request"] = round(
            (service.redis_commands(api) - commands) / (summary["requests"] + len(urls)), 3
        )
        summary["api_cpu_share"] = round((sum(api.cpu_times()[:2]) - cpu) / polls.seconds, 3)
        summary["kd_steps_meanwhile"] = service.kd_steps(jobs[0]) - steps
        found[name] = summary
        say(f"{name}: {summary}")
    found["resident_mib_after"] = round(api.memory_info().rss / MEBIBYTE, 1)
    for job in jobs:
        service.cancel(job)
    return found


def conclude(found: Record, options: argparse.Namespace) -> Record:
    """The result with its targets."""
    paced = found["paced"]
    targets = {
        "p99_ms": {"target": TARGET_P99_MILLISECONDS, "met": paced["p99_ms"] <= TARGET_P99_MILLISECONDS},
        "resident_mib": {
            "target": TARGET_RESIDENT_MIB,
            "met": found["resident_mib_after"] <= TARGET_RESIDENT_MIB,
        },
    }
    about = provenance(options.threads, options.device)
    return {**about, "quick": options.quick, "clients": options.clients, **found, "targets": targets}


def describe(result: Record) -> str:
    """The table for people."""
    rows = [["", "requests/s", "p50 ms", "p99 ms", "max ms", "Redis commands each", "API core share"]]
    for name in ("paced", "closed_loop"):
        phase: dict[str, Any] = result[name]
        line = [name.replace("_", " "), f"{phase['requests_per_second']:.0f}"]
        line += [f"{phase[column]:.1f}" for column in ("p50_ms", "p99_ms", "max_ms")]
        rows.append([*line, f"{phase['redis_commands_per_request']:.2f}", f"{phase['api_cpu_share']:.2f}"])
    missed = [name for name, target in result["targets"].items() if not target["met"]]
    memory = f"API memory {result['resident_mib_before']:.0f} MiB, afterwards {result['resident_mib_after']:.0f} MiB"
    return "\n".join([table(rows), "", memory, f"targets missed: {', '.join(missed) or 'none'}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_line(__doc__)
    parser.add_argument("--clients", type=int, default=200, help="clients, each with a job of its own (default 200)")
    parser.add_argument("--seconds", type=float, help="length of each of the two phases (default 30)")
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = 5.0 if options.quick else 30.0
    with measured_service(
        max(1, options.threads // 2), max_queued_jobs=options.clients, max_requests_per_second=0
    ) as service:
        found = measure(service, options)
    result = conclude(found, options)
    finish("api", result, describe(result), options)


if __name__ == "__main__":
    main()
