"""What workers tell of a job while it runs: events, measurements, and values for charts.

Values go into one capped stream of rows. A chart of 100,000 rows needs few of them, and reading all to throw
most away takes seconds, so the script that adds a row also keeps an *overview*: of every ``BLOCK_ROWS`` rows of
a task those that hold the least or greatest value of any series, and the first and the last. A peak of one
single row is thus in every overview. Rows of a block that is still open wait in a hash.
"""

import json
import math
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json

from shared.broker import keys
from shared.broker.attempts import Attempt, unless_refused
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import job_script
from shared.events import EventType
from shared.jobs import Event, JobError, Measurement
from shared.tasks.quality import Quality

BLOCK_ROWS = 64

REPORTS_REMEMBERED = 8
"""Of each task: as many threads of a worker as may report at once."""


@job_script("""
if not holds() then return 'lost' end
set(task .. ':error', error_json)
return 'ok'
""")
def _show_error(*, error_json: str) -> str: ...


@job_script(f"""
if not holds() then return 'lost' end
-- Sent again, since the answer to the first time was lost: a row must not be there twice.
local lately = get(task .. ':reports') or ''
if string.find(lately, report_id, 1, true) then return 'ok' end
set(task .. ':reports', string.sub(report_id .. lately, 1, {REPORTS_REMEMBERED} * #report_id))
if event_type then event(event_type, task, event_data) end
if measurement then
  set('measurement', measurement)
  redis.call('HSET', '{keys.STATISTICS}', '{keys.NEWEST_MEASUREMENT}', measurement)
end
if quality then set('quality', quality) end
if not values then return 'ok' end
local time = now()
local id = redis.call('XADD', metrics, 'MAXLEN', '~', {keys.METRICS_KEPT}, '*', 'task', task, 'at', time,
                      'step', step, 'values', values)
local open = redis.call('HGET', open_blocks, task)
open = (open and open .. '\\n' or '') .. '["' .. id .. '",' .. time .. ',' .. step .. ',' .. values .. ']'
if redis.call('HINCRBY', open_blocks, task .. ':rows', 1) % {BLOCK_ROWS} ~= 0 then
  redis.call('HSET', open_blocks, task, open)
  return 'ok'
end
local rows, least, greatest, kept = {{}}, {{}}, {{}}, {{}}
for text in string.gmatch(open, '[^\\n]+') do
  rows[#rows + 1] = text
  for name, value in pairs(cjson.decode(text)[4]) do
    if not least[name] or value < least[name][1] then least[name] = {{value, #rows}} end
    if not greatest[name] or value > greatest[name][1] then greatest[name] = {{value, #rows}} end
  end
end
local is_kept = {{[1] = true, [#rows] = true}}
for name, each in pairs(least) do
  is_kept[each[2]], is_kept[greatest[name][2]] = true, true
end
for index = 1, #rows do
  if is_kept[index] then kept[#kept + 1] = rows[index] end
end
redis.call('XADD', overview, 'MAXLEN', '~', {keys.METRIC_BLOCKS_KEPT}, id, 'task', task, 'rows',
           '[' .. table.concat(kept, ',') .. ']')
redis.call('HDEL', open_blocks, task)
return 'ok'
""")
def _report(
    *,
    report_id: str,
    metrics: Key,
    overview: Key,
    open_blocks: Key,
    event_type: str | None,
    event_data: str,
    measurement: str | None,
    quality: str | None,
    step: int,
    values: str | None,
) -> str: ...


class MetricRow(NamedTuple):
    """Values that a worker measured at one step. ``id`` orders the rows of a job."""

    id: str
    task: str
    at: float
    step: int
    values: dict[str, float | None]
    """A value that is not finite is None: JSON knows no other way to say so."""


class Reports:
    """Events, measurements and values of jobs. Every write is fenced by the attempt's token."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def show_error(self, attempt: Attempt, error: JobError | None) -> None:
        """Shows on the stage what holds it up, or that nothing does any more; goes when the task succeeds."""
        error_json = error.model_dump_json() if error else ""
        unless_refused(_show_error(self._redis, attempt.caller, error_json=error_json), attempt)

    def report(
        self,
        attempt: Attempt,
        event: EventType | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        measurement: Measurement | None = None,
        quality: Quality | None = None,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Adds an event, a measurement, a verdict and values for charts, whichever are given, in one round trip."""
        job_id = attempt.job_id
        answer = _report(
            self._redis,
            attempt.caller,
            report_id=secrets.token_hex(8),
            metrics=keys.metrics(job_id),
            overview=keys.metrics_overview(job_id),
            open_blocks=keys.metrics_open(job_id),
            event_type=event,
            event_data=json.dumps(dict(data or {})),
            measurement=measurement.model_dump_json() if measurement else None,
            quality=quality.model_dump_json() if quality else None,
            step=step,
            values=json.dumps(dict(metrics)) if metrics else None,
        )
        unless_refused(answer, attempt)

    def events(self, job_id: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """Events after an event id, oldest first."""
        start = f"({after}" if after else "-"
        return [
            Event(
                id=event_id,
                type=fields["type"],
                at=float(fields["at"]),
                task=fields["task"] or None,
                data=json.loads(fields["data"]),
            )
            for event_id, fields in self._redis.xrange(keys.events(job_id), min=start, count=limit)
        ]

    def metrics(self, job_id: str, *, limit: int = keys.METRICS_KEPT) -> list[dict[str, Any]]:
        """Measured values, oldest first: ``{id, task, at, step, values}``."""
        return [row._asdict() for row in self.metric_rows(job_id, limit=limit)]

    def metric_rows(self, job_id: str, *, after: str | None = None, limit: int = keys.METRICS_KEPT) -> list[MetricRow]:
        """Measured values after a row's id, oldest first, as far back as they are kept."""
        start = f"({after}" if after else "-"
        return [
            MetricRow(
                row_id, fields["task"], float(fields["at"]), int(fields["step"]), _finite(from_json(fields["values"]))
            )
            for row_id, fields in self._redis.xrange(keys.metrics(job_id), min=start, count=limit)
        ]

    def metrics_overview(self, job_id: str, *, after: str | None = None) -> tuple[list[MetricRow], int]:
        """The telling ones among the measured values after a row's id, oldest first, in one round trip.

        Returns:
            The rows: the extremes of every closed block of each task, and all rows of open blocks. And about how
            many rows there are in all, so that a caller can read them instead when these are few.
        """
        start = f"({after}" if after else "-"
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.xrange(keys.metrics_overview(job_id), min=start)
            pipeline.hgetall(keys.metrics_open(job_id))
            blocks, open_blocks = pipeline.execute()
        texts = [(fields["task"], fields["rows"]) for _, fields in blocks]
        texts += [
            (task, f"[{rows.replace(chr(10), ',')}]")
            for task, rows in open_blocks.items()
            if not task.endswith(":rows")
        ]
        found = [row for task, text in texts for row in _rows(task, text)]
        if after is not None:
            first = stream_position(after)
            found = [row for row in found if stream_position(row.id) > first]
        found.sort(key=lambda row: stream_position(row.id))
        open_rows = sum(rows.count("\n") + 1 for task, rows in open_blocks.items() if not task.endswith(":rows"))
        return found, len(blocks) * BLOCK_ROWS + open_rows


def stream_position(entry: str) -> tuple[int, int]:
    """A stream id as it sorts."""
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence or 0)


def _rows(task: str, text: str) -> Iterator[MetricRow]:
    for row_id, at, step, values in from_json(text):
        yield MetricRow(row_id, task, at, step, _finite(values))


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    if all(map(math.isfinite, values.values())):
        return dict(values)
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
