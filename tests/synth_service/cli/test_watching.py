"""Following a job."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from rich.console import Console

from shared.broker import Broker
from shared.errors import UserError
from shared.jobs import Measurement, Role, State
from shared.storage import Storage
from synth_service.cli.job_file import load_job_file
from synth_service.client import Client, ServerUnreachable
from synth_service.client.progress import BarDisplay, LineDisplay
from tests.conftest import free_port
from tests.synth_service.api.conftest import claim, complete
from tests.synth_service.api_process import clean_environment, serving
from tests.synth_service.cli.conftest import dfkd
from tests.waiting import wait_until


def test_watching_a_job_that_succeeds(url: str, job_file: str, broker: Broker, storage: Storage) -> None:
    def work() -> None:
        wait_until(lambda: broker.jobs.list()[0])
        complete(broker, storage)

    worker = threading.Thread(target=work)
    worker.start()
    result = dfkd("submit", job_file, "--watch", "--json", url=url)
    worker.join()
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "succeeded"
    assert "8 images" in result.stderr


def test_watching_a_job_that_fails_says_why(url: str, job_file: str, broker: Broker) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError("checkpoint_not_found", "there is no such [file]"))
    result = dfkd("watch", job_id, url=url)
    assert result.exit_code == 1
    assert "checkpoint_not_found: there is no such [file]" in result.stdout


def test_watching_a_job_that_was_cancelled_is_no_success(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    dfkd("cancel", job_id, url=url)
    result = dfkd("watch", job_id, url=url)
    assert result.exit_code == 1
    assert "was cancelled" in result.stdout


def test_ctrl_c_ends_the_watching_and_not_the_job(url: str, job_file: str, broker: Broker) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    command = [sys.executable, "-c", "from synth_service.cli import main; main()", "watch", job_id]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment(DFKD_URL=url)) as process:
        assert process.stderr is not None
        assert job_id in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=10)
    assert process.returncode == 130
    assert f"{job_id} continues" in message
    assert broker.jobs.get(job_id).state is State.QUEUED


def test_both_bars_show_count_rate_and_accuracy(url: str, job_file: str, broker: Broker) -> None:
    with Client(url) as client:
        job_id = client.jobs.create(load_job_file(job_file)).id
        attempt = claim(broker, Role.DISTILLATION)
        broker.leases.renew(claim(broker, Role.SYNTHESIS), done=4, rate=2.0)
        broker.leases.renew(attempt, done=5, rate=10.0)
        broker.reports.report(
            attempt, measurement=Measurement(step=5, student_top1=0.75, teacher_top1=0.98, agreement=0.7)
        )
        console = Console(force_terminal=True, width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        with console.file, BarDisplay(console) as display:
            display.show(client.jobs.get(job_id))
            text = console.export_text()
    assert "4/8 images" in text
    assert "2.0/s, 0:02 left" in text
    assert "5/10 steps" in text
    assert "student 0.7500, teacher 0.9800" in text


def test_watching_outlasts_an_api_that_is_away_for_a_moment(
    redis_url: str, storage: Storage, broker: Broker, job_file: str
) -> None:
    port = free_port()
    with serving(redis_url, storage.root, port) as url, Client(url) as client:
        job_id = client.jobs.create(load_job_file(job_file)).id
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    restarted: list[str] = []
    with console.file, ExitStack() as services:

        def restart_once(_seconds: float) -> None:
            if not restarted:
                restarted.append(services.enter_context(serving(redis_url, storage.root, port)))
                broker.jobs.cancel(job_id)

        with Client(url, retries=0, sleep=restart_once) as client:
            job = client.jobs.wait(job_id, progress=LineDisplay(console))
    assert job.state is State.CANCELLED
    text = console.export_text()
    assert "waiting for it; the job continues" in text
    assert "the service is back" in text


def test_watching_gives_up_on_an_api_that_stays_away() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, sleep=lambda _: None) as client, pytest.raises(ServerUnreachable):
        client.jobs.wait("job-0", patience_seconds=0.2)
