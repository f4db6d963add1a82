"""Log lines of a worker process: each says whose it is, whichever thread and library it comes from."""

import json
import subprocess
import sys
from typing import Any

import pytest

from shared.broker import Broker
from shared.jobs import JobRecord
from shared.specs import JobSpec
from shared.storage import Storage
from tests.synth_service.api_process import clean_environment

PROGRAM = """
import logging, os, signal, sys, threading, warnings
import structlog
from shared.errors import UserError
from shared.jobs import Role
from shared.logs import in_this_context
from shared.worker.process import run_worker

logger = structlog.get_logger()

def work(turn):
    logger.info("from_the_work")
    thread = threading.Thread(target=in_this_context(logger.info), args=("from_a_thread",))
    thread.start()
    thread.join()
    logging.getLogger("library").warning("from a %s", "library")
    logging.getLogger("library").info("of no interest")
    warnings.warn("from a warning")
    turn.broker.leases.renew = broken
    assert heard.wait(10)
    os.kill(os.getpid(), signal.SIGTERM)
    raise UserError("over", "it is over")

def broken(*_, **__):
    import redis
    heard.set()
    raise redis.ConnectionError("from the heartbeat")

heard = threading.Event()
run_worker(Role.SYNTHESIS, work)
"""


@pytest.fixture
def job(broker: Broker) -> JobRecord:
    fields = {
        "teacher": {"arch": "resnet20", "num_classes": 10, "checkpoint": "teacher.safetensors"},
        "synthesis": {"num_images": 8, "batch_size": 4},
        "distillation": None,
    }
    return broker.jobs.create(JobSpec.model_validate(fields))


def lines_of_a_worker(redis_url: str, storage: Storage, **settings: str) -> tuple[list[str], str]:
    """What a worker with one job writes to stderr, and its program's exit."""
    environment = clean_environment(
        REDIS_URL=redis_url, DFKD_STORAGE=storage.root, DFKD_DEVICE="cpu", DFKD_LEASE_SECONDS="1", **settings
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stderr.splitlines(), done.stdout


def test_every_line_of_a_turn_names_job_partition_attempt_and_worker(
    redis_url: str, broker: Broker, storage: Storage, job: JobRecord
) -> None:
    lines, stdout = lines_of_a_worker(redis_url, storage, DFKD_LOG_FORMAT="json")
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert stdout == ""
    names = [entry["event"] for entry in entries]
    assert names[0] == "worker_started"
    assert names[-1] == "worker_stopped"
    turn = entries[names.index("attempt_started") : names.index("job_failed") + 1]
    assert {"from_the_work", "from_a_thread", "from a library", "heartbeat_failed"} <= {each["event"] for each in turn}
    assert any("from a warning" in each["event"] for each in turn)
    assert "of no interest" not in names
    for entry in turn:
        assert (entry["job"], entry["partition"], entry["attempt"]) == (job.id, 0, 1)
    (worker,) = {entry["worker"] for entry in entries}
    assert worker.startswith("synthesis-")
    assert all(entry["role"] == "synthesis" and entry["level"] and entry["timestamp"] for entry in entries)
    assert "job" not in entries[-1]


def test_on_a_console_the_lines_say_the_same(redis_url: str, broker: Broker, storage: Storage, job: JobRecord) -> None:
    lines, _ = lines_of_a_worker(redis_url, storage, DFKD_LOG_FORMAT="console")
    (line,) = [line for line in lines if "from a library" in line]
    assert f"job={job.id}" in line
    assert "partition=0" in line
    assert "attempt=1" in line


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_logging_outlives_its_reader_and_what_an_encoding_cannot_hold(log_format: str) -> None:
    program = """
import logging, sys, structlog
from shared.logs import configure_logging
from shared.settings import Settings
configure_logging(Settings())
structlog.get_logger().warning("first", name="\U0001f600")
logging.getLogger("library").error("second \U0001f600")
sys.stdin.readline()
for _ in range(3):
    structlog.get_logger().warning("nobody reads this", text="x" * 100_000)
    logging.getLogger("library").error("nor this")
print("lives")
"""
    environment = clean_environment(DFKD_LOG_FORMAT=log_format, PYTHONIOENCODING="ascii:strict")
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    assert "first" in process.stderr.readline()
    assert "second" in process.stderr.readline()
    process.stderr.close()
    process.stderr = None
    assert process.communicate("go on\n", timeout=60)[0] == "lives\n"
