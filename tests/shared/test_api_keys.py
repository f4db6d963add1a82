import hashlib
from datetime import UTC, datetime

import pytest

from shared.api_keys import DEFAULT_SCOPES, Allowance, Scope, find_key, new_api_key, parse_api_keys

KEY = "correct-horse-battery"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def test_a_plain_key_and_its_hash_are_the_same_key() -> None:
    plain, hashed = parse_api_keys(f"me:{KEY}, me:sha256:{DIGEST.upper()}")
    assert plain == hashed
    assert plain.digest.get_secret_value() == DIGEST


def test_several_keys_have_names_and_a_name_may_have_several_keys() -> None:
    keys = parse_api_keys(f"me:{KEY},ci.bot:{KEY}-2,\n me:{KEY}-3,")
    assert [key.name for key in keys] == ["me", "ci.bot", "me"]
    assert [find_key(f"{KEY}-{number}", keys) for number in (2, 3)] == [keys[1], keys[2]]
    assert len({key.fingerprint for key in keys}) == 3


@pytest.mark.parametrize("presented", ["", KEY[:-1], f"{KEY} ", KEY.upper(), DIGEST, f"sha256:{DIGEST}", "\ud800", "é"])
def test_nothing_but_the_key_itself_is_accepted(presented: str) -> None:
    keys = parse_api_keys(f"me:{KEY}")
    assert find_key(KEY, keys) == keys[0]
    assert find_key(presented, keys) is None
    assert find_key(presented, ()) is None


def test_a_new_key_is_accepted_by_the_entry_that_was_made_with_it() -> None:
    key, entry = new_api_key("laptop")
    assert key not in entry
    found = find_key(key, parse_api_keys(entry))
    assert found is not None
    assert found.name == "laptop"
    assert new_api_key("laptop")[0] != key
    with pytest.raises(ValueError, match="letters, digits"):
        new_api_key("a:b")


def test_keys_show_neither_themselves_nor_their_hashes() -> None:
    (key,) = parse_api_keys(f"me:{KEY}")
    for shown in (repr(key), str(key), key.model_dump_json(), key.fingerprint):
        assert KEY not in shown
        assert DIGEST[:16] not in shown


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (KEY, "has no name"),
        (f":{KEY}", "name"),
        (f"a b:{KEY}", "name"),
        (f"{'a' * 65}:{KEY}", "name"),
        ("me:", "16 to 256"),
        ("me:tooshort", "16 to 256"),
        (f"me:{KEY} {KEY}", "visible ASCII"),
        (f"me:{KEY}é", "visible ASCII"),
        (f"me:sha256:{DIGEST[:-1]}", "64 hexadecimal"),
        (f"me:sha256:{KEY}", "64 hexadecimal"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_by_its_number_and_not_repeated(entry: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        parse_api_keys(f"ok:{KEY}-fine,{entry}")
    assert "entry 2" in str(refused.value)
    assert KEY not in str(refused.value)
    assert "tooshort" not in str(refused.value)


def test_what_a_key_may_do_is_written_behind_its_hash() -> None:
    options = ["scopes=read+metrics", "expires=2030-01-31", "queued-jobs=5", "running-jobs=2", "bytes=1000"]
    key, entry = new_api_key("ci", options)
    (parsed,) = parse_api_keys(entry)
    assert find_key(key, [parsed]) == parsed
    assert parsed.scopes == {Scope.READ, Scope.METRICS}
    assert parsed.expires_at == datetime(2030, 1, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert parsed.allowance == Allowance(queued_jobs=5, running_jobs=2, bytes=1000)
    assert not parsed.has_expired


def test_a_key_that_says_nothing_may_read_submit_and_see_metrics() -> None:
    (parsed,) = parse_api_keys(new_api_key("plain")[1])
    assert (parsed.scopes, parsed.expires_at, parsed.allowance) == (DEFAULT_SCOPES, None, Allowance())


@pytest.mark.parametrize("option", ["scopes=root", "scopes=", "expires=soon", "bytes=many", "bytes=-1", "x=1", ""])
def test_an_option_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="the key"):
        new_api_key("ci", [option])
