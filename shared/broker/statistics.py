"""Numbers about all jobs together, for monitoring: one round trip, however many jobs there are.

Nothing here looks at every job. The scripts count as they go (``tally``, ``enter`` and ``advance`` of
``shared.broker.scripts``), into one hash that outlives the jobs it counted: its counters only ever grow, over
restarts of every process and the deletion of jobs. What changes by the second is asked of the queues, whose
length is that of the work and not of the history.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import script
from shared.jobs import Measurement, Role, State

LAG_JOBS = 1000
"""Most jobs asked for their shard lag: the oldest that are to be distilled, which are served first."""


@script(f"""
local time = redis.call('TIME')
local function state_count(state) return tonumber(redis.call('HGET', statistics, 'jobs:' .. state) or 0) end

-- The counts of states are made anew when they cannot be right: a server that older versions have worked with.
local function check_states()
  local unfinished = state_count('queued') + state_count('running') + state_count('cancelling')
  local final = state_count('succeeded') + state_count('failed') + state_count('cancelled')
  local jobs = redis.call('ZCARD', all_jobs)
  if unfinished == redis.call('SCARD', unfinished_jobs) and unfinished + final == jobs then return end
  local counts = {{{", ".join(f"{state} = 0" for state in State)}}}
  for _, id in ipairs(redis.call('ZRANGE', all_jobs, 0, -1)) do
    local state = redis.call('HGET', '{keys.job("")}' .. id, 'state')
    if state then counts[state] = counts[state] + 1 end
  end
  for state, count in pairs(counts) do redis.call('HSET', statistics, 'jobs:' .. state, count) end
end

local function workers_group(queue)
  for _, each in ipairs(redis.call('XINFO', 'GROUPS', queue)) do
    local group = {{}}
    for place = 1, #each, 2 do group[each[place]] = each[place + 1] end
    if group.name == '{keys.GROUP}' then return group end
  end
end

-- Entries in all, entries that no worker has, and the ids of the oldest of either.
local function queue_state(queue)
  local function oldest(from)
    local entries = redis.call('XRANGE', queue, from, '+', 'COUNT', 1)
    return entries[1] and entries[1][1] or ''
  end
  local length = redis.call('XLEN', queue)
  if redis.call('EXISTS', queue) == 0 then return {{length, length, '', '', ''}} end
  local group = workers_group(queue)
  if not group then return {{length, length, oldest('-'), oldest('-'), ''}} end
  local given_back = redis.call('XPENDING', queue, '{keys.GROUP}', '-', '+', 1, '{keys.NOBODY}')
  local waiting = length - group.pending
  for _, each in ipairs(redis.call('XPENDING', queue, '{keys.GROUP}')[4] or {{}}) do
    if each[1] == '{keys.NOBODY}' then waiting = waiting + tonumber(each[2]) end
  end
  local new = oldest('(' .. group['last-delivered-id'])
  return {{length, waiting, oldest('-'), new, given_back[1] and given_back[1][1] or ''}}
end

local function shard_lags()
  local lags = {{}}
  for _, entry in ipairs(redis.call('XRANGE', queues[1], '-', '+', 'COUNT', {LAG_JOBS})) do
    local id
    for place = 1, #entry[2], 2 do if entry[2][place] == 'job' then id = entry[2][place + 1] end end
    local job = redis.call('HMGET', '{keys.job("")}' .. id, 'shards', 'shards_consumed')
    lags[#lags + 1] = tonumber(job[1] or 0) - tonumber(job[2] or 0)
  end
  return lags
end

local function workers_heard_of()
  local workers = {{}}
  local heard = redis.call('ZRANGE', all_workers, 0, -1, 'WITHSCORES')
  for place = 1, #heard, 2 do
    local role = redis.call('HMGET', '{keys.worker("")}' .. heard[place], 'role', 'job')
    if role[1] then workers[#workers + 1] = {{heard[place], role[1], role[2] or '', heard[place + 1]}} end
  end
  return workers
end

check_states()
local states = {{}}
for index, queue in ipairs(queues) do states[index] = queue_state(queue) end
return cjson.encode({{
  time = string.format('%d.%06d', time[1], time[2]), counts = redis.call('HGETALL', statistics),
  queues = states, lags = shard_lags(), workers = workers_heard_of(),
}})
""")
def _snapshot(*, statistics: Key, all_jobs: Key, unfinished_jobs: Key, all_workers: Key, queues: Sequence[Key]) -> str:
    """JSON. ``queues``: that of distillation first. Hashes of jobs and workers that they lead to are read by name."""
    ...


@dataclass(frozen=True)
class QueueState:
    """The tasks of one role that have not ended. Ages are those of their entries, 0 where there is none."""

    tasks: int
    waiting: int
    """Those that no worker has."""
    oldest_seconds: float
    oldest_waiting_seconds: float


@dataclass(frozen=True)
class WorkerState:
    """A worker that was heard of lately."""

    name: str
    role: str
    job: str
    """Empty when idle."""
    heartbeat_age_seconds: float
    """By the server's clock."""


@dataclass(frozen=True)
class Snapshot:
    """All numbers, of one moment."""

    jobs: dict[State, int]
    queues: dict[Role, QueueState]
    shard_lag: int
    """Shards announced and not yet consumed, of all jobs with a distillation to come."""
    greatest_shard_lag: int
    workers: list[WorkerState]
    images: int
    """Images in announced shards, ever. Those that a damaged shard made necessary again count again."""
    shard_bytes: int
    distillation_steps: int
    """Steps made, ever, those that a successor had to repeat included."""
    events: dict[tuple[str, str], int]
    """How often each type of event has happened, ever, by role; the role of an event of a whole job is empty."""
    newest_measurement: Measurement | None
    """The last time that a student was measured on labeled images, whichever job's it is."""


class Statistics:
    """The numbers behind ``GET /metrics``."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def snapshot(self) -> Snapshot:
        """Everything at once, in one round trip."""
        others = [role for role in Role if role is not Role.DISTILLATION]
        roles = [Role.DISTILLATION, *others]
        queues = [keys.queue(role) for role in roles]
        text = _snapshot(
            self._redis,
            statistics=keys.STATISTICS,
            all_jobs=keys.JOBS,
            unfinished_jobs=keys.UNFINISHED,
            all_workers=keys.WORKERS,
            queues=queues,
        )
        answer = json.loads(text)
        time = float(answer["time"])
        flat: list[str] = list(answer["counts"])
        kept = dict(zip(flat[::2], flat[1::2], strict=True))
        measurement = kept.pop(keys.NEWEST_MEASUREMENT, None)
        counts = {name: int(value) for name, value in kept.items()}
        lags: list[int] = list(answer["lags"])
        return Snapshot(
            jobs={state: counts.get(f"jobs:{state}", 0) for state in State},
            queues={role: _queue_state(state, time) for role, state in zip(roles, answer["queues"], strict=True)},
            shard_lag=sum(lags),
            greatest_shard_lag=max(lags, default=0),
            workers=[
                WorkerState(name, role, job, max(0.0, time - float(heard)))
                for name, role, job, heard in answer["workers"]
            ],
            images=counts.get("images", 0),
            shard_bytes=counts.get("shard_bytes", 0),
            distillation_steps=counts.get(f"done:{Role.DISTILLATION}", 0),
            events={_event(name): count for name, count in counts.items() if name.startswith("events:")},
            newest_measurement=None if measurement is None else Measurement.model_validate_json(measurement),
        )

    def memory(self) -> tuple[int, int]:
        """Bytes that the server uses for data, and the most that it may; 0 where there is no limit."""
        memory: dict[str, Any] = self._redis.info("memory")
        return int(memory["used_memory"]), int(memory.get("maxmemory", 0))


def _queue_state(state: list[Any], time: float) -> QueueState:
    tasks, waiting, oldest, *oldest_waiting = state
    return QueueState(
        tasks=int(tasks),
        waiting=int(waiting),
        oldest_seconds=_age(oldest, time),
        oldest_waiting_seconds=max(_age(entry, time) for entry in oldest_waiting),
    )


def _age(entry: str, time: float) -> float:
    """Seconds since a queue entry was made: the id of one begins with the server's milliseconds."""
    return max(0.0, time - int(entry.split("-")[0]) / 1000) if entry else 0.0


def _event(name: str) -> tuple[str, str]:
    _, event, role = name.split(":")
    return event, role
