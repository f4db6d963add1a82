"""Uploaded checkpoints: what is known of each, and which jobs use it.

The files are in the storage; a model exists when its record does. Creating a job and deleting a model are scripts
that look at the same keys, so no job begins with a model that is being deleted.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from shared.broker import keys
from shared.broker.connection import Client
from shared.broker.keys import Key
from shared.broker.scripts import script
from shared.weight_files.inspection import TensorEntry
from shared.weight_files.model import Model

logger = structlog.get_logger()

TENSORS_BYTES: Final = 1_000_000
"""Of the list of a model's tensors: everything here is kept in memory."""


@script(
    """
if redis.call('EXISTS', model) == 0 then return 'missing' end
local users = redis.call('SINTER', jobs_of_model, unfinished_jobs)
if #users > 0 then return users[1] end
redis.call('ZREM', all_models, model_id)
redis.call('DEL', model, jobs_of_model)
return 'ok'
""",
    even_when_full=True,
)
def _delete(*, model: Key, all_models: Key, jobs_of_model: Key, unfinished_jobs: Key, model_id: str) -> str:
    """Answers ``ok``, ``missing``, or the id of an unfinished job that uses the model."""
    ...


class ModelInUse(Exception):
    """An unfinished job uses the model. The argument is the job's id."""


class Models:
    """Uploaded checkpoints as clients see them."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def create(self, model: Model, tensors: list[TensorEntry]) -> None:
        """Stores a record; the file is there already."""
        fields: dict[str, str | int] = {
            "record": model.model_dump_json(),
            "owner": model.owner or "",
            "bytes": model.bytes,
            "tensors": _listed(tensors),
        }
        with self._redis.pipeline() as pipeline:
            pipeline.hset(keys.model(model.id), mapping=fields)
            pipeline.zadd(keys.MODELS, {model.id: 0})
            pipeline.execute()

    def get(self, model_id: str) -> Model:
        """One model. Raises KeyError when there is none of this id."""
        record = self._redis.hget(keys.model(model_id), "record")
        if record is None:
            raise KeyError(model_id)
        return Model.model_validate_json(record)

    def owner(self, model_id: str) -> str | None:
        """Name of the API key that uploaded a model. Raises KeyError when there is none of this id.

        Reads the record only where it is of before owners had a field of their own, and takes nobody for the owner of
        one that cannot be read.
        """
        record, owner = self._redis.hmget(keys.model(model_id), "record", "owner")
        if record is None:
            raise KeyError(model_id)
        if owner is None:
            found = _read(model_id, record)
            owner = found.owner if found else None
        return owner or None

    def tensors(self, model_id: str) -> str:
        """The model's tensors as a JSON list of ``TensorEntry``, as many as ``TENSORS_BYTES`` hold."""
        return self._redis.hget(keys.model(model_id), "tensors") or "[]"

    def list(self, *, after: str | None = None, limit: int = 20, owner: str | None = None) -> tuple[list[Model], bool]:
        """Models from newest to oldest, and whether there are more.

        Args:
            after: id of the last model of the page before.
            limit: most models to return.
            owner: only the models of this API key.
        """
        found: list[Model] = []
        for model in self._newest_first(after, page=max(limit + 1, 50)):
            if owner not in (None, model.owner):
                continue
            if len(found) == limit:
                return found, True
            found.append(model)
        return found, False

    def _newest_first(self, after: str | None, page: int) -> Iterator[Model]:
        upper = f"({after}" if after else "+"
        while True:
            ids = self._redis.zrange(keys.MODELS, upper, "-", desc=True, bylex=True, offset=0, num=page)
            with self._redis.pipeline(transaction=False) as pipeline:
                for model_id in ids:
                    pipeline.hget(keys.model(model_id), "record")
                for model_id, record in zip(ids, pipeline.execute(), strict=True):
                    if record is not None and (model := _read(model_id, record)) is not None:
                        yield model
            if len(ids) < page:
                return
            upper = f"({ids[-1]}"

    def delete(self, model_id: str) -> None:
        """Removes the record; the file is the caller's to delete.

        Raises:
            KeyError: there is no such model.
            ModelInUse: an unfinished job refers to it.
        """
        outcome = _delete(
            self._redis,
            model=keys.model(model_id),
            all_models=keys.MODELS,
            jobs_of_model=keys.model_jobs(model_id),
            unfinished_jobs=keys.UNFINISHED,
            model_id=model_id,
        )
        if outcome == "missing":
            raise KeyError(model_id)
        if outcome != "ok":
            raise ModelInUse(outcome)


def _read(model_id: str, record: str) -> Model | None:
    """The record, or None where it is of another version or damaged: no reason to show nobody anything."""
    try:
        return Model.model_validate_json(record)
    except ValueError as error:
        logger.warning("unreadable_record", model=model_id, error=str(error)[:500])
        return None


def _listed(tensors: Sequence[TensorEntry]) -> str:
    """As many of the tensors as fit, as JSON."""
    parts: list[str] = []
    size = 2
    for tensor in tensors:
        part = tensor.model_dump_json()
        size += len(part.encode()) + 1
        if size > TENSORS_BYTES:
            break
        parts.append(part)
    return f"[{','.join(parts)}]"
