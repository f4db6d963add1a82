"""Job files as people write them."""

import json
from math import inf
from pathlib import Path

import pytest

from synth_service.cli.job_file import InvalidJobFile, load_job_file
from tests.synth_service.cli.conftest import dfkd


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


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    numbers = {"010": 10, "0100": 100, "0o17": 15, "0xff": 255, "+7": 7, "-1.5e+3": -1500.0, "1e3": 1000.0, ".inf": inf}
    others = {"true": True, "Null": None, "~": None}
    texts = {text: text for text in ("1:30", "12:30:45", "1_000", "yes", "off", "0b1", "2024-01-02")}
    meant = numbers | others | texts
    path.write_text("".join(f"k{index}: {text}\n" for index, text in enumerate(meant)))
    assert list(load_job_file(str(path)).values()) == list(meant.values())
    assert load_job_file(str(path), ["seed=010", "name=1:30"])["seed"] == 10


@pytest.mark.parametrize("change", ["seed=12:30:45", "distillation.steps=1:30"])
def test_a_time_of_day_is_no_number(job_file: str, change: str) -> None:
    refused = dfkd("validate", "--offline", job_file, "--set", change)
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_json_is_json(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text('\ufeff{\n\t"name": "\\ud83d\\ude00 \U0001f600",\n\t"seed": 1e3}', encoding="utf-8")
    assert load_job_file(str(path)) == {"name": "\U0001f600 \U0001f600", "seed": 1000.0}
    for text, message in (
        ('{"a": 1, "a": 2}', "'a' is here twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1,\n\t"b" 2}', "line 2, column 6: Expecting ':'"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidJobFile, match=message):
            load_job_file(str(path))
