"""How much the owner of a key has at a time: jobs that wait, jobs that run, bytes of checkpoints and datasets.

Counted when somebody asks for more, from the jobs and models themselves and inside the script that adds one, so the
count is never wrong and two requests at once cannot both be the last. A job's dataset counts with what it is estimated
to come to until the job has ended, and with what it is then.
"""

from __future__ import annotations

from typing import Final

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import script

REFUSED: Final = f"""
local function bytes_of(who, all_models_of_everybody)
  local bytes = 0
  for _, id in ipairs(redis.call('ZRANGE', all_models_of_everybody, 0, -1)) do
    local found = redis.call('HMGET', '{keys.model("")}' .. id, 'owner', 'bytes')
    if found[1] == who then bytes = bytes + (tonumber(found[2]) or 0) end
  end
  for _, id in ipairs(redis.call('ZRANGE', '{keys.of_owner("")}' .. who, 0, -1)) do
    local found = redis.call('HMGET', '{keys.job("")}' .. id, 'state', 'shard_bytes', 'reserved_bytes')
    local made, reserved = tonumber(found[2]) or 0, tonumber(found[3]) or 0
    local is_over = found[1] == 'succeeded' or found[1] == 'failed' or found[1] == 'cancelled'
    bytes = bytes + (is_over and made or math.max(made, reserved))
  end
  return bytes
end

-- What of an allowance leaves no room for one more job that makes so many bytes; nil when there is room.
local function refused(who, all_models_of_everybody, limits, more_bytes)
  if limits.queued_jobs or limits.running_jobs then
    local queued, running = 0, 0
    for _, id in ipairs(redis.call('ZRANGE', '{keys.of_owner("")}' .. who, 0, -1)) do
      local its_state = redis.call('HGET', '{keys.job("")}' .. id, 'state')
      if its_state == 'queued' then queued = queued + 1 end
      if its_state == 'running' or its_state == 'cancelling' then running = running + 1 end
    end
    if limits.queued_jobs and queued >= limits.queued_jobs then return 'queued_jobs' end
    if limits.running_jobs and running >= limits.running_jobs then return 'running_jobs' end
  end
  if limits.bytes and bytes_of(who, all_models_of_everybody) + more_bytes > limits.bytes then return 'bytes' end
  return nil
end
"""
"""Lua for scripts that add to what somebody has."""


@script(f"{REFUSED} return bytes_of(owner, all_models)")
def _bytes_of(*, all_models: Key, owner: str) -> int: ...


def bytes_of(client: Client, owner: str) -> int:
    """Bytes of the uploaded checkpoints and datasets of a key's owner."""
    return _bytes_of(client, all_models=keys.MODELS, owner=owner)
