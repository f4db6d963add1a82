"""A smoke test of the synthesis benchmark, at a size that takes a second."""

import torch

from benchmarks.synthesis import measure_memory, measure_pairs, measure_writing
from tests.benchmarks.test_floor import SMALL

CPU = torch.device("cpu")


def test_pairs_give_the_ratio_to_the_floor() -> None:
    result = measure_pairs(SMALL, CPU, pairs=2)

    assert len(result["pairs"]) == 2
    assert result["floor_ratio"] > 0
    assert result["images_per_second"] > 0
    assert min(pair["floor_seconds"] for pair in result["pairs"]) > 0


def test_writing_is_measured_with_and_without_the_state() -> None:
    result = measure_writing(SMALL, CPU, pairs=1, rounds_per_block=1)

    (pair,) = result["pairs"]
    assert result["added_share"] == pair["added_share"]
    assert min(pair["shards_seconds"], pair["shards_and_state_seconds"]) > 0
    assert result["seconds_alone"]["shard"]["min"] > 0


def test_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = torch.ones(200 * 2**20, dtype=torch.uint8)  # would be inherited by ru_maxrss

    memory = measure_memory(SMALL, CPU, threads=1)

    assert ballast.sum() > 0
    assert memory["peak_mib"] > memory["before_networks_mib"] > 0
    assert memory["peak_mib"] - memory["before_networks_mib"] < 200
