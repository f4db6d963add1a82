"""A smoke test of the API benchmark: a few clients against a real service for a moment."""

import argparse

import pytest

from benchmarks.api import conclude, describe, measure
from benchmarks.service import measured_service

OPTIONS = argparse.Namespace(clients=3, seconds=1.5, threads=2, device="cpu", quick=True)


@pytest.mark.e2e
def test_polls_are_timed_and_counted() -> None:
    with measured_service(1, max_queued_jobs=3, max_requests_per_second=0) as service:
        result = conclude(measure(service, OPTIONS), OPTIONS)

    # A client asks at once and then once a second; fewer where the machine is busy.
    assert 1 <= result["paced"]["requests"] <= 6
    assert set(result["paced"]["statuses"]) <= {"200", "304"}
    assert result["closed_loop"]["requests_per_second"] > 0
    # A connection that is new to the pool says hello in a few commands more.
    assert 1 <= result["closed_loop"]["redis_commands_per_request"] < 1.5
    assert result["resident_mib_after"] > 10
    assert "closed loop" in describe(result)
