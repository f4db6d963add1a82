"""Keys for the settings, and keys of a service that runs."""

import json
from collections.abc import Iterator

import pytest

from shared.api_keys import find_key, new_api_key, parse_api_keys
from shared.storage import Storage
from tests.conftest import free_port
from tests.synth_service.api_process import serving
from tests.synth_service.cli.conftest import dfkd

ADMIN, ENTRY = new_api_key("operator", ["scopes=admin+read+submit"])


@pytest.fixture
def guarded(redis_url: str, storage: Storage) -> Iterator[str]:
    """A service that asks for a key."""
    with serving(redis_url, storage.root, free_port(), DFKD_API_KEYS=ENTRY) as url:
        yield url


def test_a_new_key_is_one_that_the_service_accepts() -> None:
    made = json.loads(dfkd("key", "ci", "--json").stdout)
    found = find_key(made["key"], parse_api_keys(made["entry"]))
    assert found is not None
    assert found.name == "ci"
    shown = dfkd("key", "ci")
    assert len(shown.stdout.split()) == 1  # the key alone, for scripts
    assert "DFKD_API_KEYS=ci:sha256:" in shown.stderr
    assert shown.stdout.strip() not in shown.stderr
    assert dfkd("key", "no name").exit_code == 2


def test_a_key_is_made_listed_and_revoked_while_the_service_runs(guarded: str) -> None:
    as_admin = {"DFKD_API_KEY": ADMIN}
    limited = ("--scopes", "read", "--expires", "2999-12-31", "--limit", "queued-jobs=3")
    made = dfkd("key", "ci", "--add", *limited, url=guarded, env=as_admin)
    assert made.exit_code == 0, made.stderr
    key = made.stdout.strip()
    assert len(made.stdout.split()) == 1  # the key alone, for scripts
    assert key not in made.stderr
    assert dfkd("jobs", url=guarded, env={"DFKD_API_KEY": key}).exit_code == 0

    listed = json.loads(dfkd("keys", "--json", url=guarded, env=as_admin).stdout)
    (found,) = (each for each in listed if each["name"] == "ci")
    assert (found["scopes"], found["allowance"]["queued_jobs"], found["is_configured"]) == (["read"], 3, False)
    assert f"--revoke {found['fingerprint']}" in made.stderr
    table = dfkd("keys", url=guarded, env=as_admin).stdout
    assert "2999-12-31" in table
    assert "queued-jobs=3" in table
    assert "operator" in table

    revoked = dfkd("keys", "--revoke", found["fingerprint"], url=guarded, env=as_admin)
    assert revoked.stdout.strip() == f"{found['fingerprint']} revoked"
    refused = dfkd("jobs", url=guarded, env={"DFKD_API_KEY": key})
    assert refused.exit_code == 2
    again = dfkd("keys", "--revoke", found["fingerprint"], url=guarded, env=as_admin)
    assert again.exit_code == 2
    assert "GET /keys lists all" in again.stderr


def test_keys_are_for_admins(guarded: str) -> None:
    made = dfkd("key", "reader", "--add", "--scopes", "read", "--json", url=guarded, env={"DFKD_API_KEY": ADMIN})
    reader = {"DFKD_API_KEY": json.loads(made.stdout)["key"]}
    for command in (("keys",), ("key", "more", "--add"), ("keys", "--revoke", "0" * 16)):
        refused = dfkd(*command, url=guarded, env=reader)
        assert refused.exit_code != 0
        assert "admin" in refused.stderr


def test_a_service_without_keys_says_how_to_have_some(url: str) -> None:
    assert dfkd("keys", url=url).exit_code == 0
    refused = dfkd("key", "ci", "--add", url=url)
    assert refused.exit_code == 1
    assert "DFKD_API_KEYS" in refused.stderr
