"""The hostile corpus against a running service with both workers, which goes on serving others meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from shared.storage import Storage
from tests.attack import raw_http, specs
from tests.attack.checkpoints import checkpoints
from tests.attack.shards import datasets, good_shard
from tests.e2e.service import Service
from tests.fuzz.fuzzing import small_job

ATTACKER: Final = "the-key-of-the-attacker-0123456789"
HONEST: Final = "the-key-of-an-honest-client-0123456789"
WORKER_BYTES: Final = 2_500_000_000
"""What a worker may hold: little, so that an attack on this machine's memory fails early."""

ANSWER_SECONDS: Final = 30.0
JOB_SECONDS: Final = 240.0
"""After which a job counts as hanging. Others' jobs run between."""

IN_STORAGE: Final = (
    "contains itself",
    "DATA.PKL beside",
    "colliding",
    "bomb",
    "runs os.system",
    "storage is not there",
)
"""Checkpoints that somebody puts into the storage without asking the API."""


@dataclass
class Report:
    """What came of the attack."""

    outcomes: Counter[str] = field(default_factory=Counter)
    hangs: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    slowest_answer_s: float = 0.0
    slowest: str = ""
    peak_api_mb: float = 0.0
    peak_worker_mb: float = 0.0
    honest_jobs: int = 0

    def answered(self, what: str, seconds: float) -> None:
        """Notes the time that an answer took."""
        if seconds > self.slowest_answer_s:
            self.slowest_answer_s, self.slowest = seconds, what

    def as_json(self) -> dict[str, Any]:
        """For the one line that is printed."""
        return {
            "inputs": sum(self.outcomes.values()),
            "refused": self.outcomes["refused"],
            "accepted_harmlessly": self.outcomes["harmless"],
            "hangs": len(self.hangs),
            "crashes": len(self.crashes),
            "peak_api_mb": round(self.peak_api_mb, 1),
            "peak_worker_mb": round(self.peak_worker_mb, 1),
            "slowest_answer_s": round(self.slowest_answer_s, 3),
            "slowest": self.slowest,
            "honest_jobs_finished": self.honest_jobs,
            "hanging": self.hangs,
            "crashing": self.crashes,
        }


@contextmanager
def attacked_service(redis_url: str, folder: Path) -> Iterator[Service]:
    """A service with both workers and two keys."""
    environment = {
        "DFKD_API_KEYS": f"attacker:{ATTACKER},honest:{HONEST}",
        "DFKD_OWN_JOBS_ONLY": "true",
        "DFKD_MAX_REQUESTS_PER_SECOND": "0",
        "DFKD_MAX_KEYLESS_REQUESTS_PER_SECOND": "0",
        "DFKD_MAX_MEMORY_BYTES": str(WORKER_BYTES),
        "DFKD_DEVICE": "cpu",
    }
    service = Service(redis_url, Storage(str(folder / "storage")), folder / "logs", environment)
    try:
        service.start_all()
        yield service
    finally:
        service.stop()


def attack(service: Service, *, every: int = 1, first: int = 0, with_slow: bool = True) -> Report:
    """Sends the corpus and watches.

    Args:
        service: of ``attacked_service``.
        every: takes only every so many-th input of each kind.
        first: and begins with this one, from 0.
        with_slow: also what takes as long as the service's patience.
    """
    report = Report()
    url = str(service.client.base_url).rstrip("/")
    ended = threading.Event()
    watchers = [
        threading.Thread(target=_watch_memory, args=(service, report, ended)),
        threading.Thread(target=_be_honest, args=(url, report, ended)),
        threading.Thread(target=_keep_asking, args=(url, report, ended)),
    ]
    before = {name: process.pid for name, process in service.processes.items()}
    for each in watchers:
        each.start()
    try:
        with httpx.Client(
            base_url=url, headers={"X-API-Key": ATTACKER}, timeout=ANSWER_SECONDS, trust_env=False
        ) as client:
            _Attacker(client, service, report).send_all(every, first, with_slow=with_slow)
        _wait_for_an_honest_job(report)
    finally:
        ended.set()
        for each in watchers:
            each.join()
    for name, process in service.processes.items():
        if process.poll() is not None or process.pid != before[name]:
            report.crashes.append(f"the process {name} ended")
    return report


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=ANSWER_SECONDS, trust_env=False)


class _Attacker:
    def __init__(self, client: httpx.Client, service: Service, report: Report) -> None:
        self._client = client
        self._service = service
        self._report = report
        self._jobs: dict[str, str] = {}

    def send_all(self, every: int, first: int, *, with_slow: bool) -> None:
        port = self._client.base_url.port
        assert port is not None
        said = raw_http.conversations()
        slow = [what for what, each in said.items() if each.pause_seconds]
        with ThreadPoolExecutor(len(slow)) as pool:
            if with_slow:
                for what in slow:
                    pool.submit(self._converse, port, what, said[what], 60.0)
            self._put_datasets(every, first)
            self._send_jobs(every, first)
            for what, content in list(checkpoints().items())[first::every]:
                self._ask(f"upload: {what}", partial(self._client.post, "/models", content=content))
            for what in [what for what in said if what not in slow][first::every]:
                self._converse(port, what, said[what], 15.0)
        self._await_jobs()

    def _put_datasets(self, every: int, first: int) -> None:
        storage = self._service.storage
        storage.put_bytes(good_shard(), "attack/good.tar")
        for what, content in list(datasets().items())[first::every]:
            name = f"attack/{abs(hash(what))}.tar"
            storage.put_bytes(content, name)
            self._submit(f"dataset: {what}", specs.distilling(name))
        named = [what for what in checkpoints() if any(part in what for part in IN_STORAGE)]
        for what in named[first::every]:
            name = f"attack/{abs(hash(what))}.pth"
            storage.put_bytes(checkpoints()[what], name)
            self._submit(f"teacher: {what}", specs.making(teacher=specs.TEACHER | {"checkpoint": name}))

    def _send_jobs(self, every: int, first: int) -> None:
        for what, pattern in list(specs.patterns().items())[first::every]:
            self._submit(f"pattern: {what}", specs.distilling(pattern))
        for what, job in list(specs.jobs().items())[first::every]:
            self._submit(f"job: {what}", job)
        json_type = {"Content-Type": "application/json"}
        for what, body in list(specs.bodies().items())[first::every]:
            self._ask(f"body: {what}", partial(self._client.post, "/jobs", content=body, headers=json_type))

    def _submit(self, what: str, job: Mapping[str, Any]) -> None:
        """Sends a job. One that is accepted is judged by its end."""
        answer = self._ask(what, partial(self._client.post, "/jobs", json=job), counts=False)
        if answer is not None and answer.status_code == 202:
            self._jobs[what] = answer.json()["id"]
        elif answer is not None:
            self._report.outcomes["refused"] += 1

    def _ask(self, what: str, ask: Callable[[], httpx.Response], *, counts: bool = True) -> httpx.Response | None:
        started = time.monotonic()
        try:
            answer = ask()
        except httpx.TimeoutException:
            self._report.hangs.append(what)
            answer = None
        except httpx.TransportError:  # it hung up, which is an answer
            self._report.outcomes["refused"] += 1
            return None
        self._report.answered(what, time.monotonic() - started)
        if answer is None:
            self._report.outcomes["hanging"] += 1
        elif answer.status_code >= 500:
            self._report.crashes.append(f"{what}: {answer.status_code} {answer.text[:200]}")
            self._report.outcomes["crashing"] += 1
        elif counts:
            self._report.outcomes["harmless" if answer.is_success else "refused"] += 1
        return answer if answer is not None and answer.status_code < 500 else None

    def _converse(self, port: int, what: str, said: raw_http.Conversation, seconds: float) -> None:
        outcome, waited = raw_http.converse(port, said, most_seconds=seconds)
        self._report.answered(f"bytes: {what}", waited if not said.pause_seconds else 0.0)
        if outcome == "endless":
            self._report.hangs.append(f"bytes: {what}")
        self._report.outcomes[{"refused": "refused", "served": "harmless"}.get(outcome, "hanging")] += 1

    def _await_jobs(self) -> None:
        due = time.monotonic() + JOB_SECONDS
        waiting = dict(self._jobs)
        while waiting and time.monotonic() < due:
            for what, job_id in list(waiting.items()):
                record = self._client.get(f"/jobs/{job_id}").json()
                if record["state"] in ("succeeded", "failed", "cancelled"):
                    del waiting[what]
                    self._judge(what, record)
            time.sleep(0.5)
        for what in waiting:
            self._report.hangs.append(what)
            self._report.outcomes["hanging"] += 1

    def _judge(self, what: str, record: Mapping[str, Any]) -> None:
        error = record["error"] or {}
        if error.get("code") in ("internal_error", "worker_vanished", "attempts_exhausted"):
            self._report.crashes.append(f"{what}: {error}")
            self._report.outcomes["crashing"] += 1
        else:
            self._report.outcomes["harmless" if record["state"] == "succeeded" else "refused"] += 1


def _watch_memory(service: Service, report: Report, ended: threading.Event) -> None:
    processes = {name: psutil.Process(process.pid) for name, process in service.processes.items()}
    while not ended.wait(0.02):
        for name, process in processes.items():
            with suppress(psutil.Error):
                megabytes = process.memory_info().rss / 1e6
                if name == "api":
                    report.peak_api_mb = max(report.peak_api_mb, megabytes)
                else:
                    report.peak_worker_mb = max(report.peak_worker_mb, megabytes)


def _be_honest(url: str, report: Report, ended: threading.Event) -> None:
    """Has one job done after another."""
    with _client(url, HONEST) as client:
        while not ended.is_set():
            with suppress(httpx.HTTPError, KeyError):
                job_id = client.post("/jobs", json=small_job()).json()["id"]
                while not ended.wait(0.5):
                    state = client.get(f"/jobs/{job_id}").json()["state"]
                    if state in ("succeeded", "failed", "cancelled"):
                        report.honest_jobs += state == "succeeded"
                        break


def _keep_asking(url: str, report: Report, ended: threading.Event) -> None:
    """Measures how long everybody else waits for an answer."""
    with _client(url, HONEST) as client:
        while not ended.wait(0.1):
            for path in ("/healthz", "/jobs"):
                started = time.monotonic()
                with suppress(httpx.HTTPError):
                    client.get(path)
                report.answered(f"somebody else's GET {path}", time.monotonic() - started)


def _wait_for_an_honest_job(report: Report) -> None:
    due = time.monotonic() + JOB_SECONDS
    while not report.honest_jobs and time.monotonic() < due:
        time.sleep(0.2)
