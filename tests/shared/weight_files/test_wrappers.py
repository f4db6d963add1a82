"""What is put around a state_dict comes off, however it is put there."""

from typing import Any

from shared.weight_files.wrappers import MAX_LEVELS, unwrapped


def test_wrappers_in_wrappers_come_off() -> None:
    weights = {"fc.weight": 1}
    assert unwrapped({"epoch": 3, "model": {"state_dict": weights}}) is weights
    assert unwrapped(weights) is weights
    assert unwrapped([weights]) == [weights]


def test_a_mapping_that_contains_itself_ends() -> None:
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    assert unwrapped(itself) is itself


def test_there_is_an_end_to_wrappers() -> None:
    content: dict[str, Any] = {"fc.weight": 1}
    for _ in range(MAX_LEVELS + 1):
        content = {"net": content}
    assert unwrapped(content) == {"net": {"fc.weight": 1}}
