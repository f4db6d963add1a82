"""Lua that every script of the broker starts with, and the class that runs one.

A script is atomic on the server, which is what fencing rests on: the check of the attempt token and the
write that it guards cannot be separated by another worker's takeover. Times come from the server's
clock, so that machines need not agree on theirs.
"""

from collections.abc import Sequence
from typing import Any

from shared.broker.connection import Client
from shared.broker.keys import EVENTS_KEPT, GROUP, NOBODY, STATISTICS

# KEYS of every job script: 1 job hash, 2 its events, 3 queue:synthesis, 4 queue:distillation, 5 unfinished set,
# 6 untidy set.
# ARGV[1] is always a task (role:partition) or ''; ARGV[2] the attempt token where the call is fenced.
PRELUDE = f"""
local GROUP, NOBODY = '{GROUP}', '{NOBODY}'
local task, token = ARGV[1], ARGV[2]

local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end

local function get(field) return redis.call('HGET', KEYS[1], field) end
local function set(field, value) redis.call('HSET', KEYS[1], field, value) end

-- Statistics of all jobs together: the one key that every script uses without being passed it.
local function tally(what, amount) redis.call('HINCRBY', '{STATISTICS}', what, amount) end

-- Changes the job's state. Counted here, so that nobody ever has to look at all jobs to know how many are in which.
local function enter(state)
  local before = get('state')
  if before then tally('jobs:' .. before, -1) end
  tally('jobs:' .. state, 1)
  set('state', state)
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

local function end_job(state, data)
  enter(state)
  set('finished_at', now())
  redis.call('SREM', KEYS[5], get('id'))
  redis.call('SADD', KEYS[6], get('id'))
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


class Script:
    """One Lua script with the common prelude."""

    def __init__(self, body: str) -> None:
        self._source = PRELUDE + body
        self._registered: Any = None

    def __call__(self, client: Client, keys: Sequence[str], *arguments: str | int | float) -> Any:
        """Runs it by its hash, loading it on the server when it is not there yet."""
        if self._registered is None:
            self._registered = client.register_script(self._source)
        return self._registered(keys=list(keys), args=list(arguments), client=client)
