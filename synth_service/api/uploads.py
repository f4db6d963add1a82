"""Request bodies of any size, on their way to a file: a megabyte at a time, whatever becomes of the connection."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from shared.storage import Storage
from shared.storage.durable_files import is_full, make_folder, temporary_name
from shared.storage.scratch import Scratch
from synth_service.api.problems import Problem

BLOCK_BYTES = 1024 * 1024
"""Written at once: few trips to the thread pool, and little memory."""


class Received(NamedTuple):
    """A body that has arrived whole."""

    path: Path
    bytes: int
    sha256: str


@asynccontextmanager
async def received(
    request: Request, storage: Storage, folder: str, *, max_bytes: int, too_large: Problem | None = None
) -> AsyncIterator[Received]:
    """The body as a local file, which goes with the block unless somebody moves it away.

    The file is on the disk of a local storage, where moving it is renaming, and named such that whatever a killed
    process leaves is swept up.

    Args:
        request: whose body has not been read.
        storage: where the file is meant to go, and into which folder.
        folder: of the storage.
        max_bytes: of the body.
        too_large: the answer to a longer one, where it is not the deployment that limits it.

    Raises:
        Problem: 413 (as soon as that is known), 507 (no room), 400 (the client went away).
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        if int(announced) > max_bytes:
            raise too_large or _too_large(max_bytes)
        free = storage.free_bytes()
        if free is not None and int(announced) > free:
            raise _storage_full()
    with _temporary(storage, folder) as path:
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb", buffering=0) as file:
                block = bytearray()
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > max_bytes:
                        raise too_large or _too_large(max_bytes)
                    block += chunk
                    if len(block) >= BLOCK_BYTES:
                        await run_in_threadpool(_write, file, digest, bytes(block))
                        block.clear()
                await run_in_threadpool(_write, file, digest, bytes(block))
        except ClientDisconnect:
            raise Problem(400, "bad_request", "The request ended before its body did.") from None
        except OSError as error:
            if is_full(error):
                raise _storage_full() from error
            raise
        yield Received(path, size, digest.hexdigest())


def _write(file: BinaryIO, digest: "hashlib._Hash", block: bytes) -> None:
    digest.update(block)
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _temporary(storage: Storage, folder: str) -> Iterator[Path]:
    local = storage.local_path(folder)
    if local is None:
        scratch = Scratch()
        try:
            yield scratch.path / "upload"
        finally:
            scratch.close()
        return
    storage.confirm()  # into the mount point of a volume that is away nothing is written
    make_folder(local)
    path = local / temporary_name()
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def _too_large(max_bytes: int) -> Problem:
    hint = "The operator sets the limit with DFKD_MAX_UPLOAD_BYTES."
    # The rest of the body is not read, so the connection cannot serve another request.
    close = {"Connection": "close"}
    return Problem(413, "upload_too_large", f"The body is longer than {max_bytes:,} bytes.", hint=hint, headers=close)


def _storage_full() -> Problem:
    hint = "Delete jobs or models that are no longer needed, or ask the operator for room."
    return Problem(507, "storage_full", "The storage has no room for it.", hint=hint, headers={"Connection": "close"})
