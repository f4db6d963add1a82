"""A distiller of two processes: whichever dies or freezes, the job goes on from its last checkpoint, also alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.events import EventType
from shared.jobs import Role, Stage, Task
from shared.storage import Storage
from tests.e2e.service import Service
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DISTILLATION = Task(Role.DISTILLATION)
STEPS = 2000
PATIENCE_SECONDS = 120.0


def dataset_job(digits: dict[str, Any]) -> dict[str, Any]:
    """Distils from images that are there already, so that nothing but the distiller takes part."""
    fields = {name: value for name, value in digits.items() if name != "synthesis"}
    kept = ("batch_size", "learning_rate", "temperature", "augmentation")
    distillation = {name: digits["distillation"][name] for name in kept if name in digits["distillation"]}
    evaluation = {"shards": "digits/held-out.tar", "every_steps": STEPS}
    return {
        **fields,
        "shards": "digits/held-out.tar",
        "distillation": {**distillation, "steps": STEPS},
        "evaluation": evaluation,
    }


def ranks_of(service: Service) -> tuple[psutil.Process, psutil.Process]:
    """The leader and its follower, once the leader has told Redis of itself."""

    def found() -> tuple[psutil.Process, psutil.Process] | None:
        children = {each.pid: each for each in psutil.Process(service.processes["distiller"].pid).children()}
        leaders = [int(each["pid"]) for each in service.broker.workers.all() if int(each["pid"]) in children]
        if len(leaders) != 1 or len(children) != 2:
            return None
        leader = children.pop(leaders[0])
        return leader, next(iter(children.values()))

    return wait_until(found, timeout=PATIENCE_SECONDS)


def wait_for_progress(service: Service, job_id: str, attempt: int) -> None:
    """Returns once there is a checkpoint and this attempt has made steps."""

    def stage() -> Stage:
        found = service.record(job_id).stages.distillation
        assert found is not None
        return found

    wait_until(lambda: service.broker.checkpoints.pointer(job_id, DISTILLATION), timeout=PATIENCE_SECONDS)
    wait_until(lambda: stage().attempt == attempt, timeout=PATIENCE_SECONDS)
    before = stage().progress.done
    wait_until(lambda: stage().progress.done != before, timeout=PATIENCE_SECONDS)


@pytest.fixture
def service(redis_url: str, tmp_path: Path, storage: Storage) -> Iterator[Service]:
    service = Service(
        redis_url, storage, tmp_path / "logs", {"DFKD_DISTILLER_PROCESSES": "2", "DFKD_MAX_ATTEMPTS": "10"}
    )
    yield service
    service.stop()


def test_a_job_outlives_the_death_and_the_freezing_of_any_rank(service: Service, digits: dict[str, Any]) -> None:
    service.start("api", "synth_service.api")
    service.start("distiller", "distiller.worker")
    service.wait_until_ready()
    job_id = service.submit(dataset_job(digits))

    blows = ((1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP))
    for attempt, (victim, blow) in enumerate(blows, 1):
        ranks = ranks_of(service)
        wait_for_progress(service, job_id, attempt)
        ranks[victim].send_signal(blow)
        psutil.wait_procs(ranks, timeout=PATIENCE_SECONDS)
        assert not any(each.is_running() for each in ranks)

    ranks_of(service)
    wait_for_progress(service, job_id, len(blows) + 1)
    launcher = service.processes["distiller"]
    launcher.terminate()
    assert launcher.wait(timeout=30) == 0
    assert EventType.ATTEMPT_RELEASED in [event.type for event in service.events(job_id)]
    service.environment["DFKD_DISTILLER_PROCESSES"] = "1"
    service.start("distiller", "distiller.worker")
    record = service.wait_until_final(job_id, timeout=2 * PATIENCE_SECONDS)

    assert record.state == "succeeded", record.error
    assert record.result is not None
    assert record.result["kd_steps"] == STEPS
    assert float(str(record.result["student_top1"])) > 0.9
    assert record.stages.distillation is not None
    assert record.stages.distillation.attempt == len(blows) + 2
