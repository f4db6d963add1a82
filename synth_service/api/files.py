"""Files of the storage as responses: from disk with ranges, from object storage as a stream."""

from collections.abc import Iterator
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from shared.storage import Storage

CHUNK_BYTES = 1024 * 1024
"""Each chunk is a trip to the thread pool, so few are better; what is on its way to a slow client stays small."""


class File(FileResponse):
    """A file from the disk, read in chunks: uvicorn offers no sendfile (``http.response.pathsend``)."""

    chunk_size = CHUNK_BYTES


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
        StorageUnavailable: it is away; see ``synth_service.api.problems``.
    """
    headers = {"Cache-Control": "private, no-cache"}
    if etag is not None:
        headers["ETag"] = f'"{etag}"'
        if matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
    filename = name.rpartition("/")[2]
    size = storage.size(name)
    path = storage.local_path(name)
    if path is not None:
        file_on_disk = File(path, headers=headers, media_type=media_type, filename=filename, stat_result=path.stat())
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
