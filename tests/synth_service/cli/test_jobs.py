"""Submitting, listing, showing, cancelling, deleting."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shared.broker import Broker
from shared.jobs import Role
from tests.conftest import free_port
from tests.e2e.service import REPOSITORY
from tests.shared.broker.manifests import manifest_of
from tests.synth_service.api.conftest import claim
from tests.synth_service.cli.conftest import JOB, dfkd


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
    assert any("synthesis.num_images" in line and "must be at least 1; it is 0" in line for line in lines)
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


def test_without_a_terminal_lists_are_lines_of_whole_cells_between_tabs(url: str, job_file: str) -> None:
    name = "a name that is far longer than what is left of eighty columns beside the id of a job"
    job_id = dfkd("submit", job_file, "--set", f"name={name}", url=url).stdout.strip()
    (line,) = dfkd("jobs", url=url, env={"COLUMNS": "80"}).stdout.splitlines()
    assert line.split("\t")[:5] == [job_id, name, "queued", "0%", "0%"]
    described = dict(row.split("\t") for row in dfkd("job", job_id, url=url).stdout.splitlines())
    assert described["name"] == name


def test_a_job_is_found_by_the_beginning_of_its_id_its_name_or_as_the_last(url: str, job_file: str) -> None:
    first, second = (dfkd("submit", job_file, "--set", f"name={name}", url=url).stdout.strip() for name in "ab")
    for text in (first, first[:-1], first.removeprefix("job-")[:-1], "a"):
        assert json.loads(dfkd("job", text, "--json", url=url).stdout)["id"] == first, text
    assert json.loads(dfkd("job", "last", "--json", url=url).stdout)["id"] == second
    assert dfkd("cancel", "last", url=url).stdout == f"{second} cancelled\n"
    ambiguous = dfkd("job", first[:8], url=url)
    assert ambiguous.exit_code == 2
    assert f"2 jobs begin with '{first[:8]}'" in ambiguous.stderr
    assert first in ambiguous.stderr
    unknown = dfkd("delete", "zzz", url=url)
    assert unknown.exit_code == 2
    assert "no job has the id or the name 'zzz'" in unknown.stderr


def test_the_last_of_no_jobs_says_how_to_start_one(url: str) -> None:
    result = dfkd("job", "last", url=url)
    assert result.exit_code == 2
    assert "there are no jobs yet" in result.stderr


def test_a_terminal_is_asked_before_a_job_is_deleted(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, url=url).stdout.strip()
    dfkd("cancel", job_id, url=url)
    command = [sys.executable, "-m", "synth_service.cli", "delete", job_id, "--url", url]
    said = in_terminal(command, "n\n")
    assert f"Delete {job_id} (digits) with everything that it has made? [y/N]" in said
    assert dfkd("job", job_id, url=url).exit_code == 0
    in_terminal(command, "y\n")
    assert dfkd("job", job_id, url=url).exit_code == 2


def test_submitting_tells_where_the_dashboard_shows_the_job(url: str, job_file: str) -> None:
    result = dfkd("submit", job_file, url=url)
    assert f"{url}/ui/jobs/{result.stdout.strip()}" in result.stderr


def in_terminal(command: list[str], typed: str) -> str:
    """What a command says on a terminal of its own, where ``typed`` is typed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY):
        os.close(theirs)
        said = b""
        while b"?" not in said:
            said += os.read(ours, 1024)
        os.write(ours, typed.encode())
        with contextlib.suppress(OSError):  # how Linux says that nobody has the other end open any more
            while chunk := os.read(ours, 1024):
                said += chunk
    os.close(ours)
    return re.sub(r"\s+", " ", said.decode())


def test_one_job_is_shown(url: str, job_file: str) -> None:
    job_id = dfkd("submit", job_file, "--set", "metadata.ticket=A-1", url=url).stdout.strip()
    shown = dfkd("job", job_id, url=url).stdout
    for text in (job_id, "queued", "0/8 images", "0/10 steps", "A-1"):
        assert text in shown
    assert json.loads(dfkd("job", job_id, "--json", url=url).stdout)["id"] == job_id


def test_a_job_for_another_program_says_how_far_that_is(url: str, job_file: str, broker: Broker) -> None:
    fields = yaml.safe_load(Path(job_file).read_text())
    del fields["student"]
    job_id = dfkd("submit", "-", url=url, stdin=json.dumps(fields | {"distillation": "external"})).stdout.strip()
    attempt = claim(broker, Role.SYNTHESIS)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {})
    assert "0 of 1 shards, 1 behind" in dfkd("job", job_id, url=url).stdout
