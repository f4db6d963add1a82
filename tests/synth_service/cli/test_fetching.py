"""Downloading what a job has made."""

import json
from pathlib import Path

from shared.broker import Broker
from shared.jobs import Role
from shared.storage import Storage
from tests.synth_service.api.conftest import announce, claim, complete
from tests.synth_service.cli.conftest import dfkd


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
