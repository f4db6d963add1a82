"""Names of several shards in one line."""

import tracemalloc

import pytest

from shared.errors import UserError
from shared.shards.patterns import expand_shards


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
        ("x{a}y{}", ["xay"]),
    ],
)
def test_patterns_expand(pattern: str, names: list[str]) -> None:
    assert list(expand_shards(pattern)) == names


@pytest.mark.parametrize("pattern", ["a{0..1", "a}0{", "{a,{b,c}}", "{0..999999999999}", "{0..9999}{0..9999}"])
def test_bad_and_endless_patterns_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_shards(pattern)
    assert caught.value.code == "invalid_shard_pattern"


def test_a_pattern_whose_names_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(UserError, match="characters"):
        expand_shards("p" * 1000 + "/q{0..99999}")


def test_names_come_one_by_one() -> None:
    tracemalloc.start()
    assert next(expand_shards("a-{00000..99999}.tar")) == "a-00000.tar"
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_message_repeats_no_more_of_a_pattern_than_anybody_reads() -> None:
    with pytest.raises(UserError) as caught:
        expand_shards("{" + "x" * 1000)
    assert len(caught.value.message) < 400
