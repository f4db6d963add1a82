"""A smoke test of the benchmark of large pools."""

from pathlib import Path

import torch

from benchmarks.large_pool import measure


def test_most_of_the_pool_lies_on_disk_and_all_of_it_is_measured(tmp_path: Path) -> None:
    result = measure(40, 2 * 2**20, 1, 2, torch.device("cpu"), tmp_path)

    assert result["pool_memory_bytes"] <= 2 * 2**20 < result["pool_bytes"]
    assert result["rss_filled_bytes"] >= result["rss_before_bytes"] > 0
    assert 0 <= result["loading_share"] < 1
