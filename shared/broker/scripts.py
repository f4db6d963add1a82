"""Lua scripts: each one atomic step on the server, called like a function with named, typed arguments.

A script is atomic on the server, which is what fencing rests on: the check of the attempt token and the
write that it guards cannot be separated by another worker's takeover. Times come from the server's
clock, so that machines need not agree on theirs.

The signature of a Python function declares a script. Each parameter is a local variable of that name in Lua, so that
nobody counts ``ARGV`` and mypy checks the calls:

    @job_script("if holds() then redis.call('XADD', stream, '*', 'index', index) end")
    def _announce(*, stream: Key, index: int) -> None: ...

    _announce(client, attempt.caller, stream=keys.shards(attempt.job_id), index=3)

``Key`` goes to ``KEYS``; text, numbers and truth values arrive as such, lists and mappings through JSON; None arrives
as nil.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from shared.broker.connection import Client
from shared.broker.keys import EVENTS_KEPT, GROUP, NOBODY, STATISTICS, WEBHOOKS, Key, in_state, of_job, of_owner
from shared.events import EventType
from shared.jobs import Task

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

LISTEN: Final = """
-- Notes that somebody was heard of, and when the server seems to have been away before: nobody was, for so long.
local function listen(heard, time, gap_seconds)
  local before = redis.call('HGET', heard, 'at')
  if before and time - tonumber(before) > gap_seconds then redis.call('HSET', heard, 'returned_at', time) end
  redis.call('HSET', heard, 'at', string.format('%.6f', time))
end
"""

# KEYS of every job script: 1 job hash, 2 its events, 3 queue:synthesis, 4 queue:distillation, 5 unfinished set,
# 6 untidy set.
# ARGV: 1 task (role:partition) or '', 2 the attempt's token where the call is fenced, 3 the job's id.
PRELUDE: Final = f"""
local GROUP, NOBODY = '{GROUP}', '{NOBODY}'
local task, token, job_id = ARGV[1], ARGV[2], ARGV[3]

local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end

{LISTEN}
local function get(field) return redis.call('HGET', KEYS[1], field) end
local function set(field, value) redis.call('HSET', KEYS[1], field, value) end

-- Statistics of all jobs together: a key that every script uses without being passed it.
local function tally(what, amount) redis.call('HINCRBY', '{STATISTICS}', what, amount) end

-- Changes the job's state. Counted and listed here, so that nobody ever has to look at all jobs to know which are in
-- which.
local function enter(state)
  local before = get('state')
  if before then
    tally('jobs:' .. before, -1)
    redis.call('ZREM', '{in_state("")}' .. before, job_id)
  end
  tally('jobs:' .. state, 1)
  redis.call('ZADD', '{in_state("")}' .. state, 0, job_id)
  set('state', state)
end

-- Takes a job that is about to go out of the lists of jobs.
local function leave_lists()
  tally('jobs:' .. get('state'), -1)
  redis.call('ZREM', '{in_state("")}' .. get('state'), job_id)
  redis.call('ZREM', '{of_owner("")}' .. (get('owner') or ''), job_id)
end

-- Tells how far the task is. A successor may begin behind its predecessor; what it does again counts again.
local function advance(done)
  local more = tonumber(done) - tonumber(get(task .. ':done') or 0)
  if more > 0 then tally('done:' .. string.match(task, '^%a+'), more) end
  set(task .. ':done', done)
end

local function event(type, of_task, data)
  tally('events:' .. type .. ':' .. (string.match(of_task, '^%a+') or ''), 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', {EVENTS_KEPT}, '*',
             'type', type, 'at', now(), 'task', of_task, 'data', data or '{{}}')
end

local function is_final(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

local function queue_of(some_task)
  if string.sub(some_task, 1, 9) == 'synthesis' then return KEYS[3] end
  return KEYS[4]
end

local function drop_entry(some_task)
  local entry = get(some_task .. ':entry')
  if entry then
    redis.call('XACK', queue_of(some_task), GROUP, entry)
    redis.call('XDEL', queue_of(some_task), entry)
  end
end

local function end_task(some_task, state)
  set(some_task .. ':state', state)
  set(some_task .. ':finished_at', now())
  drop_entry(some_task)
end

-- The other key that is not passed: every script that may end a job would have to.
local function withdraw_webhook()
  redis.call('ZREM', '{WEBHOOKS}', job_id)
  redis.call('HDEL', KEYS[1], 'webhook_failures')
end

local function end_job(state, data)
  enter(state)
  set('finished_at', now())
  local webhook = cjson.decode(get('spec')).webhook
  if webhook and webhook ~= cjson.null then redis.call('ZADD', '{WEBHOOKS}', now(), job_id) end
  redis.call('SREM', KEYS[5], job_id)
  redis.call('SADD', KEYS[6], job_id)
  event('job_' .. state, '', data)
end

local function tasks() return cjson.decode(get('tasks')) end

-- Whether a worker that was heard of within the lease works on any task.
local function is_held(lease_seconds)
  for _, each in ipairs(tasks()) do
    local heard = get(each .. ':heartbeat_at')
    if get(each .. ':state') == 'running' and tonumber(now()) - tonumber(heard) < lease_seconds then return true end
  end
  return false
end

local function cancel_queued_tasks()
  for _, each in ipairs(tasks()) do
    if get(each .. ':state') == 'queued' then end_task(each, 'cancelled') end
  end
end

-- A job that is being cancelled ends with the last of its running tasks.
local function settle_cancellation()
  if get('state') ~= 'cancelling' then return end
  for _, each in ipairs(tasks()) do
    if not is_final(get(each .. ':state')) then return end
  end
  end_job('cancelled')
end

local function fail_job(some_task, error)
  end_task(some_task, 'failed')
  set(some_task .. ':error', error)
  if get('state') == 'cancelling' then return settle_cancellation() end
  if is_final(get('state')) then return end
  set('error', error)
  cancel_queued_tasks()
  end_job('failed', error)
end

-- Whether the caller still holds the task. A worker that was presumed dead does not.
local function holds() return get(task .. ':token') == token and get(task .. ':state') == 'running' end
"""


class Caller(NamedTuple):
    """Of which job a script is, and who calls it. ``task`` and ``token`` are an attempt's, empty for everybody else."""

    job_id: str
    task: Task | str = ""
    token: str = ""


class Script(Generic[Parameters, Answer]):
    """A script that names all of its keys. Make one with ``script``.

    Args:
        declaration: whose keyword-only parameters are the arguments; never called.
        lua: the body.
        prelude: Lua that comes before.
        first_key, first_argument: places in KEYS and ARGV of the first declared one.
    """

    def __init__(
        self,
        declaration: Callable[Parameters, Answer],
        lua: str,
        prelude: str = "",
        first_key: int = 1,
        first_argument: int = 1,
    ) -> None:
        self.__doc__ = declaration.__doc__
        self.name = declaration.__name__
        hints = get_type_hints(declaration)
        hints.pop("return", None)
        self._hints: dict[str, Any] = hints
        self._key_names = [name for name, hint in hints.items() if _is_key(hint)]
        self._argument_names = [name for name in hints if name not in self._key_names]
        keys = [_key(hints[name], name, place) for place, name in enumerate(self._key_names, first_key)]
        arguments = [
            _argument(hints[name], name, place) for place, name in enumerate(self._argument_names, first_argument)
        ]
        _check(self.name, lua, prelude, hints)
        self.source = "\n".join([prelude, *keys, *arguments, lua])
        self._registered: Any = None

    def __call__(self, client: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        """Runs it by its hash, loading it on the server when it is not there yet."""
        return self._run(client, (), (), kwargs)

    def _run(self, client: Client, keys: Sequence[str], arguments: Sequence[str], given: Mapping[str, Any]) -> Answer:
        if self._registered is None:
            self._registered = client.register_script(self.source)
        all_keys: list[str] = list(keys)
        all_arguments: list[str | int | float] = list(arguments)
        for name in self._key_names:
            all_keys += [given[name]] if self._hints[name] is Key else given[name]
        all_arguments += [_encode(given[name]) for name in self._argument_names]
        answer: Answer = self._registered(keys=all_keys, args=all_arguments, client=client)
        return answer


class JobScript(Script[Parameters, Answer]):
    """A script about one job, with the common prelude. Make one with ``job_script``."""

    def __init__(self, declaration: Callable[Parameters, Answer], lua: str) -> None:
        super().__init__(declaration, lua, PRELUDE, first_key=len(of_job("")) + 1, first_argument=4)

    def __call__(  # type: ignore[override]
        self, client: Client, caller: Caller, /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Answer:
        """Runs it by its hash, loading it on the server when it is not there yet."""
        first = (str(caller.task), caller.token, caller.job_id)
        return self._run(client, of_job(caller.job_id), first, kwargs)


def script(
    lua: str, *, even_when_full: bool = False
) -> Callable[[Callable[Parameters, Answer]], Script[Parameters, Answer]]:
    """Makes the decorated declaration a script; see the top of this module.

    Args:
        lua: the body.
        even_when_full: it ends or frees something, so it runs on a server that has no memory left for others. Its first
            key is a hash.
    """
    return lambda declaration: Script(declaration, _WHEN_FULL + lua if even_when_full else lua)


def job_script(
    lua: str, *, even_when_full: bool = False
) -> Callable[[Callable[Parameters, Answer]], JobScript[Parameters, Answer]]:
    """Makes the decorated declaration a script about one job, with all that the prelude offers.

    Args:
        lua: the body.
        even_when_full: as for ``script``.
    """
    return lambda declaration: JobScript(declaration, _WHEN_FULL + lua if even_when_full else lua)


_WHEN_FULL: Final = "redis.call('HDEL', KEYS[1], '')\n"
"""A full server refuses a script at its first command that may take memory, unless one before has written already:
it must not stop halfway. Removing a field that nothing has counts as writing, on every version; the flag for this,
``allow-oom``, came with Redis 7."""


_EVENT = re.compile(r"\bevent\('(\w+)'")
_LOCAL = re.compile(r"^local (?:function )?([\w, ]+?)(?: =|\()", re.MULTILINE)
_OF_LUA: Final = {
    "redis",
    "cjson",
    "string",
    "table",
    "math",
    "type",
    "unpack",
    "pairs",
    "ipairs",
    "tonumber",
    "tostring",
}


def _check(name: str, lua: str, prelude: str, hints: Mapping[str, Any]) -> None:
    """What would go wrong only when the script runs goes wrong when the module is imported."""
    taken = _OF_LUA | {each for found in _LOCAL.findall(prelude) for each in found.split(", ")}
    if shadowed := taken & hints.keys():
        raise TypeError(f"script {name}: parameters {sorted(shadowed)} hide what the Lua code around them needs")
    many = [name for name, hint in hints.items() if get_args(hint) == (Key,)]
    if len(many) > 1 or (many and many != [name for name, hint in hints.items() if _is_key(hint)][-1:]):
        raise TypeError(f"script {name}: only the last key may stand for several, not {many}")
    if unknown := set(_EVENT.findall(lua)) - {*EventType, "job_"}:
        raise TypeError(f"script {name}: {sorted(unknown)} are no types of events; see shared.events")


def _is_key(hint: Any) -> bool:
    return hint is Key or get_args(hint) == (Key,)


def _key(hint: Any, name: str, place: int) -> str:
    return f"local {name} = " + (f"KEYS[{place}]" if hint is Key else f"{{unpack(KEYS, {place})}}")


def _argument(hint: Any, name: str, place: int) -> str:
    """The Lua that gives an argument its name and type."""
    given = f"ARGV[{place}]"
    if get_origin(hint) in (types.UnionType,) and type(None) in get_args(hint):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return f"local {name}\nif {given} ~= '' then {_argument(inner, name, place).removeprefix('local ')} end"
    if hint is bool:
        return f"local {name} = {given} == '1'"
    if hint in (int, float):
        return f"local {name} = tonumber({given})"
    if hint is str:
        return f"local {name} = {given}"
    if get_origin(hint) in (list, Sequence, Mapping):
        return f"local {name} = cjson.decode({given})"
    raise TypeError(f"no way to tell Lua of {name}: {hint}")


def _encode(value: Any) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, str | int | float):
        return value
    return json.dumps(value)
