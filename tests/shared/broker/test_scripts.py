"""What a declaration promises, Lua gets: names, types, keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from shared.broker import Broker, keys
from shared.broker.keys import Key
from shared.broker.scripts import Caller, job_script, script
from shared.jobs import Role, Task


@script("""
return {type(text), type(whole), type(broken), tostring(yes), tostring(no), tostring(nothing), given,
        names[2], fields.b, first, others[1], others[2]}
""")
def _show(
    *,
    first: Key,
    text: str,
    whole: int,
    broken: float,
    yes: bool,
    no: bool,
    nothing: str | None,
    given: int | None,
    names: list[str],
    fields: Mapping[str, str],
    others: Sequence[Key],
) -> list[object]:
    """All types at once."""
    ...


@job_script("return {task, token, job_id, KEYS[1], more}")
def _whose(*, more: str) -> list[str]: ...


def test_arguments_arrive_under_their_names_and_with_their_types(broker: Broker) -> None:
    shown = _show(
        broker.redis,
        first=Key("a"),
        text="7",
        whole=7,
        broken=0.5,
        yes=True,
        no=False,
        nothing=None,
        given=3,
        names=["x", "y"],
        fields={"b": "z"},
        others=[Key("k"), Key("l")],
    )

    assert shown == ["string", "number", "number", "true", "false", "nil", 3, "y", "z", "a", "k", "l"]


def test_a_job_script_knows_who_calls_it(broker: Broker) -> None:
    caller = Caller("job-1", Task(Role.SYNTHESIS, 2), "secret")

    assert _whose(broker.redis, caller, more="x") == ["synthesis:2", "secret", "job-1", keys.job("job-1"), "x"]
    assert _whose(broker.redis, Caller("job-1"), more="x")[:2] == ["", ""]


def test_a_parameter_may_not_hide_what_the_prelude_offers() -> None:
    with pytest.raises(TypeError, match=r"\['event'\] hide"):

        @job_script("return 1")
        def _hides(*, event: str) -> int: ...


def test_several_keys_come_last() -> None:
    with pytest.raises(TypeError, match="only the last key"):

        @script("return 1")
        def _unclear(*, many: Sequence[Key], one: Key) -> int: ...


def test_a_type_that_lua_cannot_be_told_of_is_refused() -> None:
    with pytest.raises(TypeError, match="no way to tell Lua of data"):

        @script("return 1")
        def _binary(*, data: bytes) -> int: ...
