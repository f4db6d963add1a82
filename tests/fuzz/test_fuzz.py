"""A short form of ``make fuzz``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz, fuzzed_service


@pytest.mark.e2e
def test_generated_requests_find_nothing_undocumented(redis_url: str, tmp_path: Path) -> None:
    with fuzzed_service(redis_url, tmp_path) as (service, job_id):
        found = fuzz(service, job_id, tmp_path, examples=2, seed=0)
    assert found["exit_code"] == 0, found["output"]
    assert found["report"]["test_cases"]["generated"] > 1000
    assert found["report"]["operations"]["tested"] == found["report"]["operations"]["total"]
