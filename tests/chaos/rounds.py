"""Rounds of jobs under faults, until the time is over; then one report.

A round posts a few jobs and harms the cluster at random moments until they have ended. When the time is over
no more harm is done, but every job is waited for.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import redis

from shared.broker import keys
from shared.jobs import JobRecord
from shared.storage import scratch
from shared.worker.retention import sweep
from tests.chaos.callers import Callers
from tests.chaos.checks import Findings, check_job, check_nothing_is_left, damaged_shards, takeovers
from tests.chaos.cluster import LEASE_SECONDS, Cluster
from tests.chaos.faults import AFTER_THE_END, DAMAGE, Victim, nothing
from tests.chaos.jobs import SHAPES, job_fields
from tests.chaos.kinds import ON_A_DISK, ON_OBJECT_STORAGE, ONE_AT_A_TIME
from tests.chaos.server_faults import KILLS
from tests.chaos.stores import Disk, Objects
from tests.chaos.students import Students

ZOMBIE_SECONDS = 8.0
"""For those that wake up after the end to find out."""

LONGEST_WAIT_SECONDS = 300.0


class Chaos:
    """One run over one cluster.

    Args:
        folder: for everything that is written.
        seed: of the choice and the moments of the faults.
        seconds: for how long harm is done.
        pause_seconds: between faults, on average.
        shapes: kinds of jobs of each round.
        rounds: most rounds.
        kinds: names of the faults; each comes once before any comes again. All that the storage can have if left out.
        object_storage: keep the files in S3 in place of a disk.
        undisturbed: jobs of each shape that run in peace first. Free pacing depends on the clock, so its
            students differ a little from run to run.
        say: told what happens.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        seconds: float,
        pause_seconds: float = 8.0,
        shapes: tuple[str, ...] = tuple(SHAPES),
        rounds: int = 1000,
        kinds: tuple[str, ...] | None = None,
        object_storage: bool = False,
        undisturbed: int = 2,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.seed = seed
        self.pause_seconds = pause_seconds
        self.shapes = shapes
        self.rounds = rounds
        self.object_storage = object_storage
        self._known = ON_OBJECT_STORAGE if object_storage else ON_A_DISK
        self.kinds = kinds or tuple(self._known)
        self.undisturbed = undisturbed
        self.say = say
        self.seconds = seconds
        self.faults: Counter[str] = Counter()
        self.findings = Findings()
        self.students = Students()
        self._endings: list[tuple[float, str, Callable[[], None]]] = []
        self._due: list[str] = []
        self._takeovers = self._damaged = self._runs = 0

    def run(self) -> dict[str, Any]:
        """Returns the report."""
        started = time.monotonic()
        try:
            with Cluster(self.folder, self._store()) as cluster:
                if isinstance(cluster.store, Disk) and not cluster.store.can_be_filled:
                    self.say("fill_disk is left out: it needs root, to mount a small file system")
                every = self._undisturbed(cluster)
                self._until = time.monotonic() + self.seconds
                self.say(f"undisturbed: {self.students.undisturbed}")
                number = 0
                with Callers(str(cluster.api.base_url), random.Random(self.seed)) as callers:
                    while time.monotonic() < self._until and number < self.rounds:
                        every += self._round(cluster, number, callers)
                        number += 1
                self.findings.problems += [*callers.problems, *self.students.problems()]
                self._finish(cluster, every)
                refused = sum(line.get("event") == "lease_lost" for line in cluster.log_lines())
        finally:
            if not self.findings.problems:
                shutil.rmtree(self.folder, ignore_errors=True)
        return {
            "runs": self._runs,
            "kills": sum(self.faults[kind] for kind in KILLS),
            "takeovers": self._takeovers,
            "answers": callers.answers,
            "longest_answer_seconds": round(callers.longest_seconds, 1),
            "zombie_writes_refused": refused,
            "damaged_shards": self._damaged,
            "lost_images": self.findings.lost_images,
            "duplicate_images": self.findings.duplicate_images,
            "failed_jobs": self.findings.failed_jobs,
            "faults": sum(self.faults.values()),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "undisturbed": self.students.undisturbed,
            "students": self.students.harmed,
            "storage": "s3" if self.object_storage else "disk",
            "seed": self.seed,
            "seconds": round(time.monotonic() - started, 1),
            "problems": self.findings.problems,
        }

    def _store(self) -> Disk | Objects:
        return Objects(self.folder / "objects", self.seed) if self.object_storage else Disk(self.folder / "disk")

    def _undisturbed(self, cluster: Cluster) -> list[str]:
        """The students that the others are measured against."""
        trained = [shape for shape in self.shapes if shape != "images_only"] * self.undisturbed
        jobs = [self._submit(cluster, shape, seed=0) for shape in trained]
        self._wait(cluster, jobs, harm=False)
        for job_id in jobs:
            record = check_job(cluster, job_id, self.findings, server_forgot=False)
            self.students.note_undisturbed(cluster, record)
        return jobs

    def _round(self, cluster: Cluster, number: int, callers: Callers) -> list[str]:
        before = self.faults.copy()
        jobs = [self._submit(cluster, shape, seed=0) for shape in self.shapes]
        callers.ask_about(jobs)
        self._wait(cluster, jobs, harm=True)
        struck = set(self.faults - before)
        for job_id in jobs:
            sweep(cluster.broker, cluster.storage)
            an_hour_passes(cluster)
            record = check_job(cluster, job_id, self.findings, server_forgot="crash_server_machine" in struck)
            self._runs += 1
            self._takeovers += takeovers(cluster, job_id)
            self._damaged += damaged_shards(cluster, job_id)
            self.findings.problems += self.students.note_harmed(cluster, record, struck)
        self.say(f"round {number}: {dict(self.faults)} {self.findings.problems}")
        return jobs

    def _submit(self, cluster: Cluster, shape: str, seed: int) -> str:
        while True:
            cluster.keep_running()
            try:
                response = cluster.api.post("/jobs", json=job_fields(shape, seed))
            except httpx.TransportError:
                continue
            if response.status_code < 500:
                return str(response.raise_for_status().json()["id"])

    def _wait(self, cluster: Cluster, jobs: list[str], *, harm: bool) -> None:
        """Returns once all jobs have ended, doing harm in between if wanted."""
        next_fault = time.monotonic() + 2.0
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        while True:
            moment = time.monotonic()
            cluster.keep_running()
            for ending in [ending for ending in self._endings if ending[0] <= moment]:
                self._endings.remove(ending)
                ending[2]()
            is_calm = harm and moment > self._until
            if not harm or not is_calm:
                deadline = max(deadline, moment + LONGEST_WAIT_SECONDS) if harm else deadline
            records = self._records(cluster, jobs)
            if records is not None:
                if all(record.state.is_final for record in records):
                    if not self._endings:
                        return
                    if all(ending[0] == AFTER_THE_END for ending in self._endings):
                        self._wake_zombies(cluster)
                        return
                if harm and not is_calm and moment >= next_fault:
                    next_fault = moment + self.random.uniform(0.4, 1.6) * self.pause_seconds
                    self._harm(cluster, records)
            if moment > deadline:
                self.findings.problems.append(f"not ended: {[(r.id, r.name, r.state) for r in records or []]}")
                return
            time.sleep(0.05)

    def _wake_zombies(self, cluster: Cluster) -> None:
        """What was frozen in the middle of a task wakes up when the job has long ended and is tidied up."""
        sweep(cluster.broker, cluster.storage)
        for _, kind, end in self._endings:
            self.say(f"{kind} ends")
            end()
        self._endings.clear()
        until = time.monotonic() + ZOMBIE_SECONDS
        while time.monotonic() < until:
            cluster.keep_running()
            time.sleep(0.1)
        cluster.end_retired()

    def _records(self, cluster: Cluster, jobs: list[str]) -> list[JobRecord] | None:
        """The jobs as the server has them; None while it is away."""
        if cluster.processes["server"].poll() is not None:
            return None
        try:
            return [cluster.broker.jobs.get(job_id) for job_id in jobs]
        except redis.RedisError:
            return None

    def _harm(self, cluster: Cluster, records: list[JobRecord]) -> None:
        """One fault; every kind once before any comes again."""
        running = [record for record in records if not record.state.is_final]
        early = [record for record in running if _share_done(record) < 0.85]
        going_on = {name for _, name, _ in self._endings}
        if not running:
            return
        for kind in self._shuffled():
            if kind in going_on or (kind in DAMAGE and not early):
                continue
            if any(kind in group and going_on & group for group in ONE_AT_A_TIME):
                continue
            try:
                ending = self._known[kind](Victim(cluster, early if kind in DAMAGE else running, self.random))
            except (redis.RedisError, OSError):
                continue  # the server, or the storage, is away already
            if ending is None:
                continue
            self._due.remove(kind)
            self.faults[kind] += 1
            self.say(f"{kind} {ending[0]:.1f} s")
            if ending[1] is not nothing:
                self._endings.append((time.monotonic() + ending[0], kind, ending[1]))
            return

    def _shuffled(self) -> list[str]:
        if not self._due:
            self._due = sorted(self.kinds)
            self.random.shuffle(self._due)
        return list(self._due)

    def _finish(self, cluster: Cluster, jobs: list[str]) -> None:
        """Stops everything, checks that nothing is left, deletes the jobs and checks again."""
        ids = [record.id for record in _all(cluster)]
        if set(jobs) != set(ids):
            # A job whose creation was acknowledged and forgotten would be missing here.
            self.findings.problems.append(f"jobs differ: {set(jobs) ^ set(ids)}")
        for job_id in ids:
            if cluster.api.delete(f"/jobs/{job_id}").status_code != 204:
                self.findings.problems.append(f"{job_id} could not be deleted")
        self.findings.problems += cluster.stop_workers()
        wait_for = time.monotonic() + LEASE_SECONDS
        sweep(cluster.broker, cluster.storage, older_than_seconds=0)
        # What killed processes left in their temporary folder, which here is not the test's own.
        tempdir, tempfile.tempdir = tempfile.tempdir, str(cluster.folder / "tmp")
        try:
            scratch.remove_abandoned(older_than_seconds=0)
        finally:
            tempfile.tempdir = tempdir
        self.findings.problems += check_nothing_is_left(cluster, [])
        if any(cluster.storage.list("jobs")) or time.monotonic() < wait_for - 2 * LEASE_SECONDS:
            self.findings.problems.append(f"files of deleted jobs are left: {cluster.storage.list('jobs')}")


def an_hour_passes(cluster: Cluster) -> None:
    """After which what the dead have left is looked for once more."""
    for job_id in cluster.broker.redis.zrange(keys.TIDY_AGAIN, 0, -1):
        cluster.broker.redis.zincrby(keys.TIDY_AGAIN, -3601, job_id)
    sweep(cluster.broker, cluster.storage)


def _all(cluster: Cluster) -> list[JobRecord]:
    records, has_more = cluster.broker.jobs.list(limit=10_000)
    assert not has_more
    return records


def _share_done(record: JobRecord) -> float:
    stage = record.stages.distillation or record.stages.synthesis
    assert stage is not None
    return stage.progress.done / stage.progress.total


def tell(text: str) -> None:
    """For people who watch."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
