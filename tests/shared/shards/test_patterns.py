"""Names of several shards in one line."""

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
    assert expand_shards(pattern) == names


@pytest.mark.parametrize("pattern", ["a{0..1", "a}0{", "{a,{b,c}}", "{0..999999999999}", "{0..9999}{0..9999}"])
def test_bad_and_endless_patterns_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_shards(pattern)
    assert caught.value.code == "invalid_shard_pattern"
