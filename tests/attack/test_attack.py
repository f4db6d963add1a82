"""A short form of ``make attack``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.checkpoints import checkpoints
from tests.attack.raw_http import conversations
from tests.attack.running import attack, attacked_service
from tests.attack.shards import datasets
from tests.attack.specs import bodies, jobs, patterns
from tests.waiting import assert_within


def test_the_corpus_is_large() -> None:
    parts = [set(part) for part in (checkpoints(), datasets(), patterns(), jobs(), bodies(), conversations())]
    assert min(len(part) for part in parts) >= 14
    assert sum(len(part) for part in parts) >= 250


@pytest.mark.e2e
def test_hostile_inputs_stop_nobody(redis_url: str, tmp_path: Path) -> None:
    with attacked_service(redis_url, tmp_path) as service:
        report = attack(service, every=8, with_slow=False)
    found = report.as_json()
    assert found["inputs"] >= 30
    assert report.hangs == []
    assert report.crashes == []
    assert report.honest_jobs >= 1
    assert report.peak_api_mb < 200
    assert_within(report.slowest_answer_s, 2.0)
