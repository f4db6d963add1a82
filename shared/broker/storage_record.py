"""Which storage the jobs of this server lie in: the id of its marker file. See ``shared.storage.identity``."""

from shared.broker import keys
from shared.broker.connection import Client


class StorageRecord:
    """The id of the storage, as this server knows it."""

    def __init__(self, client: Client) -> None:
        self._redis = client

    def get(self) -> str | None:
        """The id, None while no storage has been recorded."""
        found: str | None = self._redis.get(keys.STORAGE)
        return found

    def record(self, storage_id: str) -> str:
        """Records an id unless another one was recorded before; returns the one that counts."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(keys.STORAGE, storage_id, nx=True)
            pipeline.get(keys.STORAGE)
            counts: str = pipeline.execute()[1]
            return counts

    def replace(self, storage_id: str) -> None:
        """Records another id: of a storage that takes over from one that holds nothing."""
        self._redis.set(keys.STORAGE, storage_id)

    def has_files(self) -> bool:
        """Whether this server knows of jobs or models, whose files the storage must hold."""
        return bool(self._redis.exists(keys.JOBS, keys.MODELS))
