"""What is not about jobs: uploaded models, workers, the service itself; and where a client finds all that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from synth_service.client.connection import DEFAULT_URL, Connection, Content, Request, path_of
from synth_service.client.errors import ApiError, DamagedUpload
from synth_service.wire import (
    ArchitectureDetail,
    ArchitectureList,
    KeyDetail,
    KeyList,
    KeyRequest,
    Model,
    ModelDetail,
    ModelPage,
    NewKey,
    Preset,
    PresetList,
    WorkerDetail,
    WorkerList,
)

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
DEFAULT_RETRIES: Final = 3
MODELS_PER_PAGE: Final = 100
UPLOAD_CHUNK_BYTES: Final = 1024 * 1024
UPLOAD_SECONDS: Final = 300.0
"""The service hashes and checks what it has received before it answers."""


def url_of(url: str | None) -> str:
    """The address that was given, or that of the environment, or this machine's."""
    return url if url is not None else os.environ.get("DFKD_URL") or DEFAULT_URL


def key_of(api_key: str | None) -> str | None:
    """The key that was given, or that of the environment, if there is one."""
    return api_key if api_key is not None else os.environ.get("DFKD_API_KEY") or None


Models = list[Model]
"""Inside the class, ``list`` is the method."""


class AsyncModels:
    """Checkpoints that clients upload, so that jobs can name them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def upload(self, path: Path | str, *, name: str | None = None) -> Model:
        """Sends a checkpoint, a piece at a time; ``checkpoint`` of the answer is what a job names it by.

        Args:
            path: a safetensors file, or a torch file that loads weights-only.
            name: for people; the name of the file unless given.

        Raises:
            OSError: it cannot be read.
            ApiError: it is too large, is no checkpoint, or loading it would run code.
            DamagedUpload: other bytes arrived than were sent.
        """
        path = Path(path)
        digest = hashlib.sha256()

        def read() -> Iterator[bytes]:
            nonlocal digest
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(UPLOAD_CHUNK_BYTES):
                    digest.update(chunk)
                    yield chunk

        request = Request(
            "POST",
            "/models",
            params={"filename": name or path.name},
            headers={"Content-Type": "application/octet-stream"},
            content=Content(read, path.stat().st_size),
            is_repeatable=False,  # it would be there twice
            timeout_seconds=UPLOAD_SECONDS,
        )
        model = await self._connection.ask(request, Model.model_validate)
        if model.sha256 != digest.hexdigest():
            await self.delete(model.id)
            raise DamagedUpload(f"{path.name}: sha256 is {digest.hexdigest()}, that of what arrived is {model.sha256}")
        return model

    async def get(self, model_id: str) -> ModelDetail:
        """One of them, with its tensors."""
        return await self._connection.ask(Request("GET", path_of("models", model_id)), ModelDetail.model_validate)

    async def list(self) -> Sequence[Model]:
        """All that were uploaded, newest first."""
        models: Models = []
        params = {"limit": str(MODELS_PER_PAGE)}
        while True:
            page = await self._connection.ask(Request("GET", "/models", params=params), ModelPage.model_validate)
            models += page.data
            if not page.has_more:
                return models
            params["after"] = models[-1].id

    async def delete(self, model_id: str) -> None:
        """Removes one."""
        try:
            await self._connection.send(Request("DELETE", path_of("models", model_id)))
        except ApiError as error:
            if not (error.status == 404 and error.is_repeated):
                raise


class AsyncKeys:
    """API keys of the service, changed while it runs. All of it needs a key with the scope ``admin``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> Sequence[KeyDetail]:
        """Those that count now: neither expired nor revoked."""
        return (await self._connection.ask(Request("GET", "/keys"), KeyList.model_validate)).data

    async def make(self, wanted: KeyRequest) -> NewKey:
        """Makes one that counts at once; ``key`` of the answer is shown this once.

        Raises:
            ApiError: ``no_keys_configured``, ``too_many_keys``, or a field is refused.
        """
        request = Request("POST", "/keys", json=wanted.model_dump(mode="json"), is_repeatable=False)
        return await self._connection.ask(request, NewKey.model_validate)

    async def revoke(self, fingerprint: str) -> None:
        """Ends one, and the sign-ins made with it.

        Args:
            fingerprint: 16 hexadecimal digits, as ``list`` shows them.

        Raises:
            ApiError: ``key_not_found``.
        """
        try:
            await self._connection.send(Request("DELETE", path_of("keys", fingerprint)))
        except ApiError as error:
            if not (error.status == 404 and error.is_repeated):
                raise


class AsyncService:
    """The service itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def workers(self) -> Sequence[WorkerDetail]:
        """Workers that were heard of within the last minute."""
        page = await self._connection.ask(Request("GET", "/workers"), WorkerList.model_validate)
        return page.data

    async def architectures(self) -> Sequence[ArchitectureDetail]:
        """Networks that jobs may name."""
        return (await self._connection.ask(Request("GET", "/architectures"), ArchitectureList.model_validate)).data

    async def presets(self) -> Sequence[Preset]:
        """Named settings of ``synthesis``."""
        return (await self._connection.ask(Request("GET", "/presets"), PresetList.model_validate)).data

    async def check_ready(self) -> None:
        """Raises ServerUnreachable, with the reason, unless the service can take jobs."""
        await self._connection.send(Request("GET", "/readyz"))

    async def close(self) -> None:
        """Closes the connections."""
        await self._connection.close()
