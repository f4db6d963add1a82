"""Workers: who was heard of lately, and what they do."""

from __future__ import annotations

from collections.abc import Mapping

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import script


@script("""
local time = redis.call('TIME')
redis.call('DEL', worker)
for field, value in pairs(fields) do redis.call('HSET', worker, field, value) end
redis.call('PEXPIRE', worker, math.floor(ttl_seconds * 1000))
redis.call('ZADD', all_workers, string.format('%d.%06d', time[1], time[2]), name)
redis.call('ZREMRANGEBYSCORE', all_workers, '-inf', tonumber(time[1]) - ttl_seconds)
""")
def _register(*, worker: Key, all_workers: Key, name: str, ttl_seconds: float, fields: Mapping[str, str]) -> None: ...


class Workers:
    """All worker processes of the deployment."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def register(self, name: str, fields: Mapping[str, str | int | float], *, ttl_seconds: float) -> None:
        """Says that a worker lives and what it does; forgotten after ``ttl_seconds`` of silence."""
        _register(
            self._redis,
            worker=keys.worker(name),
            all_workers=keys.WORKERS,
            name=name,
            ttl_seconds=ttl_seconds,
            fields={field: str(value) for field, value in fields.items()},
        )

    def forget(self, name: str) -> None:
        """Removes a worker that stops in good order."""
        with self._redis.pipeline() as pipeline:
            pipeline.delete(keys.worker(name))
            pipeline.zrem(keys.WORKERS, name)
            pipeline.execute()

    def all(self) -> list[dict[str, str]]:
        """All workers that were heard of lately."""
        names = sorted(self._redis.zrange(keys.WORKERS, 0, -1))
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hgetall(keys.worker(name))
            described = pipeline.execute()
        found = zip(names, described, strict=True)
        return [{"name": name, **fields} for name, fields in found if fields]
