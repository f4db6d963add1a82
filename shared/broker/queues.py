"""Queues: which tasks wait for a worker, and in what order they get one.

A queue is a stream of ``{job, partition}`` entries with one consumer group. An entry stays in it until its task has
ended; who works on it is told by the job's hash. So the entries are the tasks that there are, in the order in which
they came, and *claimable* are those that nobody works on and that *can progress*:

* Synthesis cannot while ``max_backlog`` shards wait for a distiller and none is at work, nor while as many wait for
  the program that trains in a distiller's place.
* Distillation cannot while it has taken every shard there is and more are to come.

At any moment at least one half of a job can progress: where synthesis cannot, there are shards to take. A task that
was never begun is claimable all the same, so that workers of both halves load their networks at once; one that was
*parked*, since another task needed the worker more, is not until it can progress. Tasks that owe images (of a
quarantined shard) come first: their job is otherwise done, and its distiller waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import LISTEN, script
from shared.jobs import Role, Task

MOST_TASKS = 16
"""Of one look at the queue: as many as workers could take before it is looked at again."""

MOST_CLAIMS = 10_000
"""Given back or expired, of one look."""


@script(f"""
local time = redis.call('TIME')
time = tonumber(string.format('%d.%06d', time[1], time[2]))
{LISTEN}
listen(heard, time, gap_seconds)

local function field(job, name) return redis.call('HGET', '{keys.job("")}' .. job, name) end
local function is_final(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

local function is_silent(job, task)
  return time - tonumber(field(job, task .. ':heartbeat_at') or 0) >= dead_after_seconds
end

local function max_backlog(job)
  local spec = cjson.decode(field(job, 'spec'))
  if type(spec.distillation) == 'table' and spec.distillation.pacing == 'lockstep' then return 1 end
  return spec.synthesis.max_backlog
end

local function can_progress(job)
  local shards, consumed = tonumber(field(job, 'shards') or 0), tonumber(field(job, 'shards_consumed') or 0)
  if role == 'synthesis' then
    if field(job, 'consumed_until') then return shards - consumed < max_backlog(job) end
    local state = field(job, 'distillation:0:state')
    if not state or is_final(state) then return true end
    if state == 'running' and not is_silent(job, 'distillation:0') then return true end
    return shards - consumed < max_backlog(job)
  end
  if shards > consumed then return true end
  for _, each in ipairs(cjson.decode(field(job, 'tasks'))) do
    if string.sub(each, 1, 9) == 'synthesis' and field(job, each .. ':state') ~= 'succeeded' then return false end
  end
  return true
end

local function is_claimable(entry, job, task)
  local state = field(job, task .. ':state')
  if not state or field(job, task .. ':entry') ~= entry or is_final(state) then return not is_strict end
  if state == 'running' then return is_silent(job, task) end
  local job_state = field(job, 'state')
  if job_state == 'cancelling' or is_final(job_state) then return true end
  local is_fresh = not field(job, task .. ':attempt')
  if field(job, task .. ':parked') or (is_strict and is_fresh) then return can_progress(job) end
  return true
end

local first, others = {{}}, {{}}
local function consider(entry)
  if entry[1] == besides then return end
  local fields = {{}}
  for place = 1, #entry[2], 2 do fields[entry[2][place]] = entry[2][place + 1] end
  local task = role .. ':' .. fields.partition
  if not is_claimable(entry[1], fields.job, task) then return end
  local list = (field(fields.job, task .. ':owed') or '[]') == '[]' and others or first
  list[#list + 1] = {{entry[1], fields.job, fields.partition}}
end

-- Claims that are renewed are not idle, so living workers, however many, cost nothing here.
local pending = redis.call('XPENDING', queue, group, '-', '+', {MOST_CLAIMS}, nobody)
local idle_ms = math.floor(dead_after_seconds * 1000)
for _, each in ipairs(redis.call('XPENDING', queue, group, 'IDLE', idle_ms, '-', '+', {MOST_CLAIMS})) do
  if each[2] ~= nobody then pending[#pending + 1] = each end
end
local function place_of(id) return tonumber(string.match(id, '^%d+')), tonumber(string.match(id, '%d+$')) end
table.sort(pending, function(left, right)
  local time_of_left, number_of_left = place_of(left[1])
  local time_of_right, number_of_right = place_of(right[1])
  if time_of_left ~= time_of_right then return time_of_left < time_of_right end
  return number_of_left < number_of_right
end)
for _, each in ipairs(pending) do
  local entry = redis.call('XRANGE', queue, each[1], each[1])[1]
  if entry then consider(entry) else redis.call('XACK', queue, group, each[1]) end
  if #first + #others >= {MOST_TASKS} then break end
end
if with_new and #first + #others == 0 then
  for _, each in ipairs(redis.call('XINFO', 'GROUPS', queue)) do
    local about = {{}}
    for place = 1, #each, 2 do about[each[place]] = each[place + 1] end
    if about.name == group then
      for _, entry in ipairs(redis.call('XRANGE', queue, '(' .. about['last-delivered-id'], '+', 'COUNT', 100)) do
        consider(entry)
      end
    end
  end
end
for _, each in ipairs(others) do first[#first + 1] = each end
return first
""")
def _waiting(
    *,
    queue: Key,
    heard: Key,
    group: str,
    nobody: str,
    role: str,
    besides: str,
    is_strict: bool,
    with_new: bool,
    dead_after_seconds: float,
    gap_seconds: float,
) -> list[list[str]]:
    """Entry, job and partition of each. ``is_strict``: also those that were never begun must be able to progress."""
    ...


class Waiting(NamedTuple):
    """A task that a worker may take."""

    entry: str
    job_id: str
    task: Task


class Queues:
    """The queues of both roles.

    Args:
        client: of the server.
        lease_seconds: silence after which a worker loses its claim.
    """

    def __init__(self, client: Client, lease_seconds: float) -> None:
        self._redis = client
        self._lease_seconds = lease_seconds

    def returned(self, role: Role) -> list[Waiting]:
        """Claimable tasks that workers had before: given back, or of workers that fell silent. The next one first."""
        return self._waiting(role, besides="", is_strict=False, with_new=False)

    def has_other(self, role: Role, entry: str) -> bool:
        """Whether some task but that of this entry waits for a worker and would progress with one."""
        return bool(self._waiting(role, besides=entry, is_strict=True, with_new=True))

    def _waiting(self, role: Role, *, besides: str, is_strict: bool, with_new: bool) -> list[Waiting]:
        found = _waiting(
            self._redis,
            queue=keys.queue(role),
            heard=keys.HEARD,
            group=keys.GROUP,
            nobody=keys.NOBODY,
            role=str(role),
            besides=besides,
            is_strict=is_strict,
            with_new=with_new,
            dead_after_seconds=dead_after(self._lease_seconds),
            gap_seconds=outage_gap(self._lease_seconds),
        )
        return [Waiting(entry, job_id, Task(role, int(partition))) for entry, job_id, partition in found]

    def new(self, role: Role, worker: str, block_seconds: float) -> list[Waiting]:
        """The next task that no worker has had, waiting for one if need be."""
        answer: Any = self._redis.xreadgroup(
            keys.GROUP, worker, {keys.queue(role): ">"}, count=1, block=max(1, int(block_seconds * 1000))
        )
        streams = answer.items() if isinstance(answer, dict) else (answer or [])
        return [
            Waiting(entry, fields["job"], Task(role, int(fields["partition"])))
            for _, entries in streams
            for entry, fields in entries
        ]

    def create_group(self, role: Role) -> None:
        """Makes queue and group, if there are none."""
        try:
            self._redis.xgroup_create(keys.queue(role), keys.GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


def dead_after(lease_seconds: float) -> float:
    """Silence after which a worker counts as dead: a little less than the lease, as clocks are read at two moments."""
    return 0.9 * lease_seconds


def outage_gap(lease_seconds: float) -> float:
    """Silence of everybody after which it was the server that was away, and not its workers.

    A shorter outage leaves every lease standing; in a longer one nobody's silence tells anything.
    """
    return lease_seconds / 2
