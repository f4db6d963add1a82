"""Files of the storage as responses: from disk with ranges, from object storage as a stream.

A storage that is away is a 503 and no 500, whatever its driver raises then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import structlog
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from shared.storage import PathOutsideStorage, Storage
from shared.storage.durable_files import is_full
from synth_service.api.problems import Problem

logger = structlog.get_logger()

CHUNK_BYTES = 1024 * 1024
"""Each chunk is a trip to the thread pool, so few are better; what is on its way to a slow client stays small."""


class File(FileResponse):
    """A file from the disk, read in chunks: uvicorn offers no sendfile (``http.response.pathsend``)."""

    chunk_size = CHUNK_BYTES


@contextmanager
def _outages_as_problems() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PathOutsideStorage):
        raise
    except Exception as error:
        if is_full(error):
            raise Problem(507, "storage_full", "The storage has no room for it.") from error
        # An S3 driver has dozens of its own, with no base in common.
        logger.warning("storage_unavailable", error=f"{type(error).__name__}: {error}")
        detail = "The storage does not answer, or refuses access."
        raise Problem(503, "storage_unavailable", detail, headers={"Retry-After": "5"}) from error


def is_there(storage: Storage, name: str) -> bool:
    """Whether there is such a file. Raises PathOutsideStorage, or Problem 503."""
    with _outages_as_problems():
        return storage.exists(name)


def read(storage: Storage, name: str) -> bytes:
    """The content of a small file. Raises FileNotFoundError, or Problem 503."""
    with _outages_as_problems():
        return storage.read_bytes(name)


def names(storage: Storage, folder: str) -> list[str]:
    """Names of all files in a folder and below it. Raises Problem 503."""
    with _outages_as_problems():
        return storage.list(folder)


def sizes(storage: Storage, folder: str) -> dict[str, int]:
    """Names and sizes of all files in a folder and below it, sorted. Raises Problem 503."""
    with _outages_as_problems():
        return storage.sizes(folder)


def put(storage: Storage, local: Path, name: str) -> None:
    """Stores a local file, which it gives up. Raises Problem 503 or 507."""
    with _outages_as_problems():
        storage.put_file(local, name, move=True)


def delete_tree(storage: Storage, folder: str) -> None:
    """Removes a folder with everything in it. Raises Problem 503."""
    with _outages_as_problems():
        storage.delete_tree(folder)


def send(storage: Storage, name: str, request: Request, *, media_type: str, etag: str | None = None) -> Response:
    """A file as response: 304 if the client has it, in ranges where the storage is a local folder.

    Args:
        storage: where the file is.
        name: its name there.
        request: for its conditions.
        media_type: of the file.
        etag: strong validator of the content, without quotes, where one is known.

    Raises:
        FileNotFoundError: there is no such file.
        Problem: 503, the storage is away.
    """
    headers = {"Cache-Control": "private, no-cache"}
    if etag is not None:
        headers["ETag"] = f'"{etag}"'
        if matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
    filename = name.rpartition("/")[2]
    with _outages_as_problems():
        size = storage.size(name)
        path = storage.local_path(name)
        if path is not None:
            file_on_disk = File(
                path, headers=headers, media_type=media_type, filename=filename, stat_result=path.stat()
            )
            # Without a checksum its ETag comes from the time and size of the file.
            unchanged = matches(request, file_on_disk.headers["ETag"])
            return Response(status_code=304, headers=headers) if unchanged else file_on_disk
        file = storage.open(name)
    headers |= {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{filename}"'}
    return StreamingResponse(_chunks(file), headers=headers, media_type=media_type)


def matches(request: Request, etag: str) -> bool:
    """Whether the client already has this version (If-None-Match), so that 304 is the answer."""
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return etag.removeprefix("W/") in known or "*" in known


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
