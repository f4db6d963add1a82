"""Any interleaving of what workers and clients do keeps the promises of the broker. Against a real server.

Leases are an hour long, and an expiry is the rule that makes one claim look an hour old: so no time passes and
hypothesis can shrink what it finds.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from shared.broker import Attempt, Broker, JobFinished, JobStopped, JobSucceeded, JobUnfinished, LeaseLost, keys
from shared.errors import UserError
from shared.jobs import JobError, Role, State, Task, tasks_of
from tests.shared.broker.manifests import manifest_of
from tests.shared.broker.test_leases import fall_silent
from tests.specs import small_job

LEASE_SECONDS = 3600.0
IMAGES = 16
MAX_BACKLOG = 2
SPEC = small_job(
    synthesis={"num_images": 6 * IMAGES, "batch_size": IMAGES, "partitions": 2, "max_backlog": MAX_BACKLOG}
)


class BrokerMachine(RuleBasedStateMachine):
    """Workers claim, work, vanish and come back; a client cancels, retries and deletes."""

    attempts: Bundle[Attempt] = Bundle("attempts")
    jobs: Bundle[str] = Bundle("jobs")
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker(self.url, lease_seconds=LEASE_SECONDS, max_attempts=4, retries=1)
        self.broker.redis.flushall()
        for role in Role:
            self.broker.leases.claim(role, "nobody", block_seconds=0.001)
        self.holders: dict[tuple[str, Task], Attempt] = {}
        """Who holds what, as the model has it."""
        self.finished: set[str] = set()
        """Tokens of the attempts that have finished their task."""
        self.final: dict[str, State] = {}
        self.known: set[str] = set()

    def teardown(self) -> None:
        self.broker.close()

    def _write(self, attempt: Attempt, write: Any) -> Any:
        """Does a fenced write and checks that it is refused exactly when the attempt is not the holder."""
        is_holder = self.holders.get((attempt.job_id, attempt.task)) == attempt
        before = self._snapshot(attempt.job_id)
        try:
            answer = write()
        except LeaseLost:
            assert not is_holder
            assert self._snapshot(attempt.job_id) == before
            return "lost"
        except JobStopped:
            assert is_holder
            return "stop"
        assert is_holder
        return answer

    def _snapshot(self, job_id: str) -> Any:
        redis = self.broker.redis
        return redis.hgetall(keys.job(job_id)), redis.xlen(keys.shards(job_id)), redis.xlen(keys.events(job_id))

    def _let_go(self, attempt: Attempt) -> None:
        self.holders.pop((attempt.job_id, attempt.task), None)

    # -- what happens ---------------------------------------------------------------------------------

    @rule(target=jobs)
    def create(self) -> str:
        job = self.broker.jobs.create(SPEC)
        self.known.add(job.id)
        return job.id

    @initialize(target=attempts)
    def start(self) -> Any:
        """A job in full swing, so that few steps lead far."""
        self.create()
        claimed = [self.claim(role, "a") for role in (Role.SYNTHESIS, Role.SYNTHESIS, Role.DISTILLATION)]
        for attempt in claimed[:2]:
            for _ in range(2):
                self.announce(attempt, again=False)
        return multiple(*claimed)

    @rule(target=attempts, role=st.sampled_from(list(Role)), worker=st.sampled_from("ab"))
    def claim(self, role: Role, worker: str) -> Any:
        claimable = self._claimable(role)
        attempt = self.broker.leases.claim(role, worker, block_seconds=0.001)
        if attempt is None:
            assert not claimable
            return multiple()
        assert (attempt.job_id, attempt.task) in claimable
        owing = {each for each in claimable if self._owes(*each)}
        assert not owing or (attempt.job_id, attempt.task) in owing
        # Only what nobody holds any more is handed out.
        assert (attempt.job_id, attempt.task) not in self.holders
        self.holders[attempt.job_id, attempt.task] = attempt
        return attempt

    def _fields(self, job_id: str) -> dict[str, str]:
        fields: dict[str, str] = self.broker.redis.hgetall(keys.job(job_id))
        return fields

    def _owes(self, job_id: str, task: Task) -> bool:
        """Whether images are owed by a task that some worker has had."""
        fields = self._fields(job_id)
        return f"{task}:attempt" in fields and fields.get(f"{task}:owed", "[]") != "[]"

    def _claimable(self, role: Role) -> set[tuple[str, Task]]:
        """Tasks that nobody holds, but for those that were parked and cannot progress."""
        found = set()
        for job_id in self.known:
            fields = self._fields(job_id)
            ahead = int(fields.get("shards", 0)) - int(fields.get("shards_consumed", 0))
            has_distiller = (job_id, Task(Role.DISTILLATION)) in self.holders
            synthesis_ended = all(
                fields[f"{task}:state"] == State.SUCCEEDED for task in tasks_of(SPEC) if task.role is Role.SYNTHESIS
            )
            for task in tasks_of(SPEC):
                if task.role is not role or fields[f"{task}:state"] != State.QUEUED:
                    continue
                if role is Role.SYNTHESIS:
                    can_progress = has_distiller or ahead < MAX_BACKLOG
                    can_progress |= State(fields["distillation:0:state"]).is_final
                else:
                    can_progress = ahead > 0 or synthesis_ended
                if can_progress or f"{task}:parked" not in fields:
                    found.add((job_id, task))
        return found

    @rule(attempt=attempts)
    def outage(self, attempt: Attempt) -> None:
        """The server was away for longer than any lease: not now, it says to whoever wants a task that looks lost."""
        if self.holders.get((attempt.job_id, attempt.task)) != attempt:
            return
        self.broker.redis.hincrbyfloat(keys.HEARD, "at", -2 * LEASE_SECONDS)
        fall_silent(self.broker, attempt, 2 * LEASE_SECONDS)
        other = self.broker.leases.claim(attempt.task.role, "c", block_seconds=0.001)
        if other is not None:
            assert (other.job_id, other.task) not in self.holders
            self.broker.leases.release(other, "made room")
        with suppress(JobStopped):
            self.broker.leases.renew(attempt)
        self.broker.redis.hset(keys.HEARD, "returned_at", 0)

    @rule(attempt=attempts)
    def consume(self, attempt: Attempt) -> None:
        """The distiller takes one more shard."""
        if attempt.task.role is not Role.DISTILLATION or attempt.job_id not in self.known:
            return
        announced = len(self.broker.shards.manifests(attempt.job_id))
        taken = min(self.broker.jobs.shards_consumed(attempt.job_id) + 1, announced)
        self._write(attempt, lambda: self.broker.shards.consumed(attempt, shards=taken, images=IMAGES * taken))

    @rule(attempt=attempts)
    def expire(self, attempt: Attempt) -> None:
        """The holder falls silent for longer than the lease; it may still try to write later."""
        if self.holders.get((attempt.job_id, attempt.task)) != attempt:
            return
        fall_silent(self.broker, attempt, 2 * LEASE_SECONDS)
        self.holders.pop((attempt.job_id, attempt.task))
        # Until it is claimed the old token is still good, so others look for work until it is, or has ended.
        found: list[Attempt] = []
        for _ in range(12):
            successor = self.broker.leases.claim(attempt.task.role, "c", block_seconds=0.001)
            if successor is not None:
                found.append(successor)
                if (successor.job_id, successor.task) == (attempt.job_id, attempt.task):
                    break
        for successor in found:
            self.broker.leases.release(successor, "made room")

    @rule(attempt=attempts, done=st.integers(0, 100))
    def renew(self, attempt: Attempt, done: int) -> None:
        self._write(attempt, lambda: self.broker.leases.renew(attempt, done=done))

    @rule(attempt=attempts, again=st.booleans())
    def announce(self, attempt: Attempt, again: bool) -> None:
        """The next shard that is due, or the one before once more."""
        if attempt.task.role is not Role.SYNTHESIS:
            return
        position = self.broker.shards.position(attempt.job_id, attempt.task)
        if again and position.next_index:
            manifest = manifest_of(attempt, position.next_index - 1, first_image=0)
        elif position.owed:
            manifest = manifest_of(attempt, position.next_index, first_image=position.owed[0][0])
        elif position.next_image < 3 * IMAGES:
            manifest = manifest_of(attempt, position.next_index, first_image=position.next_image)
        else:
            return
        self._write(attempt, lambda: self.broker.shards.announce(attempt, manifest, {"name": manifest.name}))

    @rule(attempt=attempts, place=st.integers(0, 5), consumed=st.booleans())
    def quarantine(self, attempt: Attempt, place: int, consumed: bool) -> None:
        if attempt.task.role is not Role.DISTILLATION:
            return
        shards = list(self.broker.shards.until(attempt.job_id))
        if place < len(shards):
            self._write(attempt, lambda: self.broker.shards.quarantine(attempt, shards[place], "x", consumed=consumed))

    @rule(attempt=consumes(attempts), how=st.sampled_from(["release", "pass", "retry", "fail"]))
    def give_back(self, attempt: Attempt, how: str) -> None:
        leases = self.broker.leases
        writes = {
            "release": lambda: leases.release(attempt, "stopping"),
            "pass": lambda: leases.release(attempt, "yield", is_parked=True),
            "retry": lambda: leases.retry(attempt, JobError(code="internal_error", message="x")),
            "fail": lambda: leases.fail(attempt, UserError("bad", "x")),
        }
        if self._write(attempt, writes[how]) != "lost":
            self._let_go(attempt)

    @rule(attempt=attempts)
    def finish(self, attempt: Attempt) -> None:
        if attempt.task.role is Role.DISTILLATION and not self._synthesis_is_complete(attempt.job_id):
            return
        if attempt.token in self.finished:
            # Sent again, as after a lost answer: nothing happens, and nobody is told that it was refused.
            before = self._snapshot(attempt.job_id)
            with suppress(LeaseLost):
                assert self.broker.leases.finish(attempt) == "ok"
            assert self._snapshot(attempt.job_id) == before
            return
        answer = self._write(attempt, lambda: self.broker.leases.finish(attempt))
        if answer == "last":
            answer = self.broker.leases.finish(attempt, folder_completed=True, result={"images": 1})
            assert self.broker.jobs.get(attempt.job_id).state is State.SUCCEEDED
        if answer == "ok":
            self._let_go(attempt)
            self.finished.add(attempt.token)

    def _synthesis_is_complete(self, job_id: str) -> bool:
        try:
            return self.broker.jobs.synthesis_is_complete(job_id)
        except KeyError:
            return False

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        try:
            self.broker.jobs.cancel(job_id)
        except JobFinished:
            assert self.broker.jobs.get(job_id).state.is_final
        except KeyError:
            assert job_id not in self.known

    @rule(job_id=jobs)
    def retry(self, job_id: str) -> None:
        try:
            self.broker.jobs.retry(job_id)
        except JobSucceeded:
            assert self.final[job_id] is State.SUCCEEDED
        except JobUnfinished:
            assert job_id not in self.final
        except KeyError:
            assert job_id not in self.known
        else:
            assert self.final.pop(job_id) in (State.FAILED, State.CANCELLED)
            for held in [each for each in self.holders if each[0] == job_id]:
                del self.holders[held]

    @rule(job_id=jobs)
    def delete(self, job_id: str) -> None:
        held = [task for job, task in self.holders if job == job_id]
        try:
            self.broker.retention.delete(job_id, lease_seconds=LEASE_SECONDS)
        except JobUnfinished:
            assert held or not self.broker.jobs.get(job_id).state.is_final
        except KeyError:
            assert job_id not in self.known
        else:
            assert not held
            self.known.remove(job_id)
            self.final.pop(job_id, None)
            assert not list(self.broker.redis.scan_iter(f"{keys.job(job_id)}*"))
            assert self.broker.retention.deleted()

    # -- what must hold -------------------------------------------------------------------------------

    @invariant()
    def every_image_counts_once_or_is_owed(self) -> None:
        for job_id in self.known:
            shards = self.broker.shards.manifests(job_id)
            for task in tasks_of(SPEC):
                if task.role is not Role.SYNTHESIS:
                    continue
                position = self.broker.shards.position(job_id, task)
                counted: Counter[int] = Counter()
                for manifest in shards:
                    if manifest.partition == task.partition:
                        counted.update(range(manifest.first_image, manifest.first_image + manifest.images))
                for first, count in position.owed:
                    counted.update(range(first, first + count))
                assert counted == Counter(range(position.next_image))
                assert position.images == position.next_image - sum(count for _, count in position.owed)

    @invariant()
    def a_final_state_is_final(self) -> None:
        for job_id in self.known:
            state = self.broker.jobs.get(job_id).state
            if job_id in self.final:
                assert state is self.final[job_id]
            elif state.is_final:
                self.final[job_id] = state

    @invariant()
    def a_task_that_can_still_be_worked_on_has_exactly_one_entry(self) -> None:
        redis = self.broker.redis
        entries = Counter(
            (fields["job"], str(Task(role, int(fields["partition"]))))
            for role in Role
            for _, fields in redis.xrange(keys.queue(role))
        )
        for job_id in self.known:
            fields = redis.hgetall(keys.job(job_id))
            for task in tasks_of(SPEC):
                open_ = State(fields[f"{task}:state"]) in (State.QUEUED, State.RUNNING)
                assert entries.pop((job_id, str(task)), 0) == open_
        assert not entries

    @invariant()
    def the_counters_agree_with_the_stream(self) -> None:
        for job_id in self.known:
            fields = self.broker.redis.hgetall(keys.job(job_id))
            assert int(fields.get("shards", 0)) == self.broker.redis.xlen(keys.shards(job_id))

    @invariant()
    def only_jobs_that_have_not_ended_count_as_unfinished(self) -> None:
        unfinished = {job_id for job_id in self.known if not self.broker.jobs.get(job_id).state.is_final}
        assert self.broker.redis.smembers(keys.UNFINISHED) == unfinished

    @invariant()
    def every_job_is_counted_in_its_state(self) -> None:
        counted = {state: int(self.broker.redis.hget(keys.STATISTICS, f"jobs:{state}") or 0) for state in State}
        assert counted == {**dict.fromkeys(State, 0), **Counter(self.broker.jobs.get(id_).state for id_ in self.known)}

    @invariant()
    def every_job_is_listed_in_its_state_alone(self) -> None:
        listed = {state: set(self.broker.redis.zrange(keys.in_state(state), 0, -1)) for state in State}
        states = {id_: self.broker.jobs.get(id_).state for id_ in self.known}
        assert listed == {state: {id_ for id_ in states if states[id_] is state} for state in State}


@pytest.mark.parametrize("steps", [50])
def test_any_interleaving_keeps_the_promises(redis_url: str, steps: int) -> None:
    BrokerMachine.url = redis_url
    run_state_machine_as_test(
        BrokerMachine,
        settings=settings(
            max_examples=10,
            phases=[Phase.generate],
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
