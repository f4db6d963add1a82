"""Styles and scripts, served from memory under an address that changes with their content.

They are a few hundred kilobytes that every page asks for, so they are read and compressed once a process.
The address carries a hash, hence browsers may keep what they have for ever, and still follow an upgrade.
"""

import gzip
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from synth_service.api.problems import Problem

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

router = APIRouter()


class StaticFile(NamedTuple):
    """A file as it is sent."""

    content: bytes
    compressed: bytes
    media_type: str
    version: str
    """Of the content: the first digits of its SHA-256."""


@cache
def static_files() -> dict[str, StaticFile]:
    """All files by their path below the folder. Nothing else can be asked for."""
    files = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            files[path.relative_to(FOLDER).as_posix()] = StaticFile(
                content, gzip.compress(content, mtime=0), MEDIA_TYPES[path.suffix], sha256(content).hexdigest()[:16]
            )
    return files


def static_url(name: str) -> str:
    """The address of a file as pages name it, such as ``app.css``. Raises KeyError when there is none."""
    return f"/ui/static/{name}?v={static_files()[name].version}"


@router.get("/ui/static/{name:path}")
async def get_static_file(name: str, request: Request, v: str = "") -> Response:
    """One file; for ever cacheable when asked for by its hash."""
    file = static_files().get(name)
    if file is None:
        raise Problem(404, "no_such_path", f"There is no {name} among the files of the dashboard.")
    tag = f'W/"{file.version}"'
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if v == file.version else "no-cache",
        "ETag": tag,
        "Vary": "Accept-Encoding",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, headers=headers, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)
