"""Commands about the service, run as people run them: as a program."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.broker import Broker
from shared.errors import UserError
from shared.events import EventType
from shared.jobs import Role
from shared.storage import Storage
from shared.storage.identity import StorageIdentity
from shared.storage.names import MARKER
from tests.conftest import free_port
from tests.specs import small_job
from tests.synth_service.api.conftest import claim
from tests.synth_service.api_process import clean_environment
from tests.synth_service.cli.conftest import dfkd
from tests.synth_service.client.scripted_server import Answer, ScriptedServer

# Under its own name, by which the shell's completion knows it.
PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'dfkd'; from synth_service.cli import main; main()"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], env=clean_environment(**environment), capture_output=True, text=True, timeout=60
    )


# -- jobs -------------------------------------------------------------------------------------------------


def test_a_job_is_validated_here_and_there(url: str, job_file: str, broker: Broker) -> None:
    there = dfkd("validate", job_file, "--json", url=url)
    here = dfkd("validate", job_file, "--json", "--offline")
    assert (there.exit_code, here.exit_code) == (0, 0)
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert json.loads(here.stdout)["estimate"]["images"] == 8
    assert broker.jobs.list()[0] == []
    for options in (["--offline"], []):
        refused = dfkd("validate", job_file, "--set", "synthesis.num_images=0", *options, url=url)
        assert refused.exit_code == 2
        assert "synthesis.num_images" in refused.stderr
        assert refused.stdout == ""


def test_logs_show_what_has_happened(url: str, job_file: str, broker: Broker) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    broker.reports.report(claim(broker, Role.SYNTHESIS), EventType.EVALUATED, {"text": "[bold]hello"})
    shown = dfkd("logs", job_id, url=url)
    assert shown.exit_code == 0
    assert "synthesis:0 evaluated text=[bold]hello" in shown.stdout
    events = [json.loads(line) for line in dfkd("logs", job_id, "--json", url=url).stdout.splitlines()]
    assert [event["id"] for event in events] == [event.id for event in broker.reports.events(job_id, limit=100)]
    later = dfkd("logs", job_id, "--json", "--after", events[-2]["id"], url=url).stdout.splitlines()
    assert [json.loads(line) for line in later] == events[-1:]


def test_logs_are_followed_to_the_end(url: str, job_file: str, broker: Broker) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    attempt = claim(broker, Role.SYNTHESIS)
    command = [*PROGRAM, "logs", "-f", job_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment(DFKD_URL=url)) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # from here on it follows
        broker.leases.fail(attempt, UserError("over", "it is over"))
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert first
    assert "job_failed" in rest.splitlines()[-1]


def test_ctrl_c_ends_the_following_and_not_the_job(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    with subprocess.Popen(
        [*PROGRAM, "logs", "-f", job_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(DFKD_URL=url),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"{job_id} continues. Follow it with: dfkd watch {job_id}" in message
    assert "Traceback" not in message


def test_a_cancelled_job_is_retried(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    assert dfkd("retry", job_id, url=url).exit_code == 1  # it has not ended
    dfkd("cancel", job_id, url=url)
    assert dfkd("retry", job_id, url=url).stdout == f"{job_id} queued\n"
    dfkd("cancel", job_id, url=url)
    assert json.loads(dfkd("delete", job_id, "--json", url=url).stdout) == {"id": job_id, "deleted": True}


# -- models, workers, keys --------------------------------------------------------------------------------


def test_a_checkpoint_is_uploaded_listed_and_removed(url: str, tmp_path: Path) -> None:
    import torch

    torch.save({"fc.weight": torch.zeros(10, 4)}, tmp_path / "mine.pt")
    reference = dfkd("upload", str(tmp_path / "mine.pt"), url=url).stdout.strip()
    assert reference.startswith("models/model-")
    assert "mine.pt" in dfkd("models", url=url).stdout
    (model,) = json.loads(dfkd("models", "--json", url=url).stdout)
    assert model["checkpoint"] == reference
    assert dfkd("models", "--delete", reference, url=url).exit_code == 0
    assert json.loads(dfkd("models", "--json", url=url).stdout) == []
    missing = dfkd("upload", str(tmp_path / "none.pt"), url=url)
    assert missing.exit_code == 1
    assert "No such file" in missing.stderr


def test_workers_are_listed(url: str, broker: Broker) -> None:
    assert dfkd("workers", url=url).stdout == ""
    broker.workers.register("w-1", {"role": "synthesis", "at": 5.0, "device": "cpu"}, ttl_seconds=60)
    assert "w-1" in dfkd("workers", url=url).stdout
    assert json.loads(dfkd("workers", "--json", url=url).stdout)[0]["name"] == "w-1"


def test_the_key_is_taken_from_the_environment() -> None:
    with ScriptedServer([Answer(401, b'{"code": "api_key_missing", "detail": "needs a key"}')]).running() as server:
        refused = run("jobs", DFKD_URL=server.url, DFKD_API_KEY="dfkd_secret")
    assert server.asked[0].headers["authorization"] == "Bearer dfkd_secret"
    assert refused.returncode == 2
    assert "give the key with --api-key or DFKD_API_KEY" in refused.stderr
    assert "dfkd_secret" not in run("jobs", "--help", DFKD_API_KEY="dfkd_secret").stdout


def test_another_web_server_is_no_traceback() -> None:
    with ScriptedServer([Answer(200, b"<html>", {"Content-Type": "text/html"})]).running() as server:
        result = run("jobs", DFKD_URL=server.url)
    assert result.returncode == 3
    assert "is that the address of the service" in result.stderr
    assert "Traceback" not in result.stderr


# -- doctor -----------------------------------------------------------------------------------------------


def checks(result: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["ok"] is (result.returncode == 0)
    return {each["check"]: (each["status"], each["detail"]) for each in found["checks"]}


def test_a_sound_machine_is_found_sound(url: str, redis_url: str, storage: Storage) -> None:
    result = run("doctor", "--json", REDIS_URL=redis_url, DFKD_STORAGE=storage.root, DFKD_URL=url)
    assert result.returncode == 0, result.stdout
    found = checks(result)
    assert found["redis"][1].startswith("Valkey ")
    assert found["torch"][0] == "ok"
    assert "GB free" in found["storage"][1]
    assert found["service"] == ("warning", f"{url} is ready, and has no workers")


@pytest.mark.parametrize("marker", [None, "0" * 32])
def test_a_storage_that_is_not_the_one_of_the_jobs_is_named(
    broker: Broker, redis_url: str, tmp_path: Path, marker: str | None
) -> None:
    storage = Storage(str(tmp_path / "storage"))  # not that of the service which all tests here share
    StorageIdentity(storage, broker.storage_record).establish(in_empty_root=True)
    broker.jobs.create(small_job())
    recorded = broker.storage_record.get()
    assert recorded is not None
    same = checks(run("doctor", "--json", REDIS_URL=redis_url, DFKD_STORAGE=storage.root))["storage marker"]
    assert same[0] == "ok"
    assert recorded in same[1]

    path = Path(storage.root) / MARKER
    path.unlink() if marker is None else path.write_text(marker)
    result = run("doctor", "--json", REDIS_URL=redis_url, DFKD_STORAGE=storage.root)

    status, detail = checks(result)["storage marker"]
    assert (status, result.returncode) == ("broken", 1)
    assert recorded in detail
    assert "Mount the volume, or correct DFKD_STORAGE" in detail


def test_each_broken_thing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(
        "doctor",
        "--json",
        REDIS_URL=f"redis://user:hunter2@127.0.0.1:{free_port()}",
        DFKD_STORAGE=str(tmp_path / "file"),
        DFKD_URL=f"http://127.0.0.1:{free_port()}",
        DFKD_HOST="0.0.0.0",
        DFKD_DEVICE="cuda:99",
    )
    assert result.returncode == 1
    found = checks(result)
    assert {name for name, (status, _) in found.items() if status == "broken"} == {
        "redis",
        "storage",
        "service",
        "api keys",
        "torch",
    }
    assert "hunter2" not in result.stdout + result.stderr


def test_a_service_that_does_not_run_is_no_fault_and_nothing_is_made(tmp_path: Path) -> None:
    result = run("doctor", DFKD_STORAGE=str(tmp_path / "data"), DFKD_URL="")
    assert result.returncode == 0, result.stdout
    assert "will be made" in result.stdout
    assert not (tmp_path / "data").exists()


# -- the shell --------------------------------------------------------------------------------------------


def completions(typed: str, **environment: str) -> str:
    return run(
        _DFKD_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(typed.split()) - 1 + typed.endswith(" ")),
        **environment,
    ).stdout  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="bash")
def test_commands_and_ids_are_completed(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    assert "doctor" in completions("dfkd doc")
    assert job_id in completions("dfkd watch job-", DFKD_URL=url)
    assert completions("dfkd watch job-", DFKD_URL=f"http://127.0.0.1:{free_port()}").strip() == ""
