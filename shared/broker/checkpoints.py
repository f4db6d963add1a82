"""Checkpoints: pointers from which successors go on. The files are the workers': see ``shared.worker.work_files``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared.broker import keys
from shared.broker.attempts import Attempt, unless_refused
from shared.broker.connection import Client
from shared.broker.scripts import job_script
from shared.jobs import Task


@job_script("""
if not holds() then return 'lost' end
set(task .. ':checkpoint', pointer)
if position > tonumber(get(task .. ':best_position') or -1) then
  redis.call('HSET', KEYS[1], task .. ':best_position', position, task .. ':failures', 0, task .. ':forgiven', 0)
end
return 'ok'
""")
def _save(*, pointer: str, position: int) -> str: ...


class Checkpoints:
    """Where each task was left last. Every write is fenced by the attempt's token."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def save(self, attempt: Attempt, pointer: Mapping[str, Any], *, position: int) -> None:
        """Stores where a successor should continue.

        Args:
            attempt: that leaves it.
            pointer: to the file.
            position: how far it is. Progress, which forgives failures, is a position beyond the best of any attempt:
                one that comes as far as its predecessor and fails there again has made none.

        Raises:
            LeaseLost: another attempt has the task; the checkpoint does not count.
        """
        answer = _save(self._redis, attempt.caller, pointer=json.dumps(dict(pointer)), position=position)
        unless_refused(answer, attempt)

    def pointer(self, job_id: str, task: Task) -> dict[str, Any] | None:
        """What the last ``save``, or announcement of a shard, stored."""
        text = self._redis.hget(keys.job(job_id), f"{task}:checkpoint")
        return json.loads(text) if text else None
