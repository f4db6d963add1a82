"""The sha256 of files and bytes, as manifests, pointers and results hold it."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(data: bytes) -> str:
    """Of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
