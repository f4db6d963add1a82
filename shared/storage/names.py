"""Names of files below the storage root, whoever wrote them."""

import re

TEMPORARY_PREFIX = ".tmp-"
"""Marks an unfinished file; no name of a finished one has it."""

MARKER = "dfkd-storage-id"
"""The file in the root by which a deployment knows its storage, which no listing shows: ``shared.storage.identity``."""

MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255


class PathOutsideStorage(ValueError):
    """A name that is no plain relative path below the storage root."""


def check_name(name: str) -> str:
    """The name itself if it is a plain relative POSIX path, whatever it may point to.

    Raises:
        PathOutsideStorage: absolute, ``..`` or ``.``, empty parts, backslash, control character, URL
            scheme, too long, or a reserved ``.tmp-`` name.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise PathOutsideStorage(f"storage name {name!r} is not valid Unicode") from None
    parts = name.split("/")
    if not name:
        reason = "is empty"
    elif name.startswith("/"):
        reason = "is absolute; give a path relative to the storage root"
    elif any(ord(character) < 32 or ord(character) == 127 for character in name) or "\\" in name:
        reason = "contains a backslash or a control character"
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        reason = "looks like a URL or a drive; give a path relative to the storage root"
    elif any(part in ("", ".", "..") for part in parts):
        reason = "has an empty, `.` or `..` part"
    elif any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        reason = f"has a part that starts with the reserved {TEMPORARY_PREFIX!r}"
    elif len(encoded) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        reason = f"is longer than {MAX_NAME_BYTES} bytes, or one of its parts than {MAX_PART_BYTES}"
    else:
        return name
    raise PathOutsideStorage(f"storage name {name[:200]!r} {reason}")


def is_listed(name: str) -> bool:
    """Whether listings show a file: not one that is unfinished, or in an unfinished folder, and not the marker."""
    return name != MARKER and not any(part.startswith(TEMPORARY_PREFIX) for part in name.split("/"))
