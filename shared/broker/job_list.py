"""Pages of the job list, whose cost does not grow with the number of jobs.

All ids lie in one sorted set. So do those of each state and those of each owner, kept by the scripts that change them
(``enter`` and ``leave_lists`` of ``shared.broker.scripts``). A filtered page walks the shorter of the sets that hold
what it asks for. Only a search by name looks at every job of that set; it does so on the server, a bounded number of
jobs a call, so that others are served in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import script
from shared.jobs import JobRecord, State, record_from_fields

logger = structlog.get_logger()

LOOKS: Final = 2000
"""Most jobs that one call of the script looks at: a few milliseconds, while everybody else waits."""


@script(f"""
local sources = {{}}
if state then sources[#sources + 1] = '{keys.in_state("")}' .. state end
if owner then sources[#sources + 1] = '{keys.of_owner("")}' .. owner end
local source = sources[1] or all_jobs
if sources[2] and redis.call('ZCARD', sources[2]) < redis.call('ZCARD', source) then source = sources[2] end
local must_look = sources[2] or name
local from, looked, ids = after and '(' .. after or '+', 0, {{}}
while #ids < count and looked < {LOOKS} do
  local wanted = must_look and 200 or count
  local page = redis.call('ZRANGE', source, from, '-', 'BYLEX', 'REV', 'LIMIT', 0, wanted)
  for _, id in ipairs(page) do
    looked, from = looked + 1, '(' .. id
    local fits = true
    if must_look then
      local job = redis.call('HMGET', '{keys.job("")}' .. id, 'state', 'owner', 'name_folded', 'name')
      local called = job[3] or string.lower(job[4] or '')
      fits = (not state or job[1] == state) and (not owner or (job[2] or '') == owner)
             and (not name or string.find(called, name, 1, true) ~= nil)
    end
    if fits then ids[#ids + 1] = id end
    if #ids == count then break end
  end
  if #page < wanted then return {{'', unpack(ids)}} end
end
return {{string.sub(from, 2), unpack(ids)}}
""")
def _page(
    *, all_jobs: Key, state: str | None, owner: str | None, name: str | None, after: str | None, count: int
) -> list[str]:
    """Answers with the id to go on after, empty at the end of the list, and with the ids that were found."""
    ...


@script(f"""
local indexed = 0
for _, each in ipairs(states) do indexed = indexed + redis.call('ZCARD', '{keys.in_state("")}' .. each) end
if indexed == redis.call('ZCARD', all_jobs) then return 0 end
for _, each in ipairs(states) do redis.call('UNLINK', '{keys.in_state("")}' .. each) end
for _, id in ipairs(redis.call('ZRANGE', all_jobs, 0, -1)) do
  local job = redis.call('HMGET', '{keys.job("")}' .. id, 'state', 'owner')
  if job[1] then redis.call('ZADD', '{keys.in_state("")}' .. job[1], 0, id) end
  if job[2] and job[2] ~= '' then redis.call('ZADD', '{keys.of_owner("")}' .. job[2], 0, id) end
end
return 1
""")
def _check(*, all_jobs: Key, states: list[str]) -> int:
    """Makes the lists anew where they cannot be whole: on a server that older versions have worked with."""
    ...


class JobList:
    """All jobs, from newest to oldest."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def page(
        self, *, after: str | None, limit: int, state: State | None, name: str | None, owner: str | None
    ) -> tuple[list[JobRecord], bool]:
        """Jobs, and whether there are more; see ``Jobs.list`` for the arguments."""
        if state is not None or owner is not None:
            _check(self._redis, all_jobs=keys.JOBS, states=[str(each) for each in State])
        found: list[JobRecord] = []
        for ids in self._ids(after, limit + 1, state, name.lower() if name else None, owner):
            for record in self._records(ids):
                # What happened between the two round trips counts.
                if state not in (None, record.state):
                    continue
                if len(found) == limit:
                    return found, True
                found.append(record)
        return found, False

    def _ids(
        self, after: str | None, count: int, state: State | None, name: str | None, owner: str | None
    ) -> Iterator[Sequence[str]]:
        """Ids that fit, one round trip each time, until there are no more."""
        while True:
            after, *ids = _page(
                self._redis, all_jobs=keys.JOBS, state=state, owner=owner, name=name, after=after, count=count
            )
            yield ids
            if not after:
                return

    def _records(self, ids: Sequence[str]) -> Iterator[JobRecord]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hgetall(keys.job(job_id))
            for job_id, fields in zip(ids, pipeline.execute(), strict=True):
                if fields:
                    try:
                        yield record_from_fields(fields)
                    except (ValueError, TypeError, LookupError) as error:
                        # Of another version, or damaged: no reason to show nobody anything.
                        logger.warning("unreadable_record", job=job_id, error=f"{type(error).__name__}: {error}"[:500])
