"""Objects below an ``s3://`` address. Errors are those of the driver; ``Storage`` says what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
"""Of an upload to object storage: what it takes of memory, whatever the size of the file."""

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 15
TRIES: Final = 2
"""Of a request by the driver, and of these by what stands above it. A store that is away is said to be so within
seconds, and one that hangs within a minute (theirs is up to half an hour): workers try again for as long as it takes,
and the API's clients can decide themselves. ``AWS_MAX_ATTEMPTS`` and ``AWS_RETRY_MODE`` win."""


REFUSALS: Final = frozenset({"InvalidToken", "TokenRefreshRequired", "SignatureDoesNotMatch", "InvalidSecurity"})
"""Codes by which a store refuses credentials, besides those of which the driver makes a ``PermissionError``."""

NO_CREDENTIALS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
"""Errors of a driver that has found none to send."""


def is_refusal(error: BaseException) -> bool:
    """Whether an error of the driver says that the store does not accept this process's credentials."""
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return isinstance(error, PermissionError) or code in REFUSALS or type(error).__name__ in NO_CREDENTIALS


class ObjectStore:
    """Objects under one address.

    Args:
        address: ``s3://bucket`` or ``s3://bucket/prefix``, without a slash at the end.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        # Other processes write the same bucket: a cached listing would hide what they announced.
        config: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        if not (os.environ.get("AWS_MAX_ATTEMPTS") or os.environ.get("AWS_RETRY_MODE")):
            config["retries"] = {"mode": "standard", "total_max_attempts": TRIES}
        from shared.storage.s3_driver import BoundedS3  # an extra, which a local folder does not need

        self._files: Any = BoundedS3(use_listings_cache=False, config_kwargs=config)
        self._files.retries = TRIES

    def open(self, name: str) -> BinaryIO:
        """The object for reading, seekable."""
        self._info(name)
        return cast(BinaryIO, self._files.open(self._of(name), "rb"))

    def probe(self, name: str) -> None:
        """Raises what opening the object would, for one request."""
        self._info(name)

    def size(self, name: str) -> int:
        """Bytes of the object."""
        return int(self._info(name)["size"])

    def entity_tag(self, name: str) -> str:
        """Changes with the content."""
        return str(self._info(name).get("ETag"))

    def download(self, name: str, target: Path) -> None:
        """Copies the object to a local path, as it goes."""
        self._files.get_file(self._of(name), str(target))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object in a folder and below it, of all without one, from the listing alone."""
        found = self._files.find(self._of(prefix) if prefix else self._address, detail=True)
        start, below = self._address.removeprefix("s3://"), f"{prefix}/" if prefix else ""
        names = {path.removeprefix(f"{start}/"): int(info["size"]) for path, info in found.items()}
        return {name: size for name, size in names.items() if name.startswith(below)}

    def put_bytes(self, data: bytes, name: str) -> None:
        """Stores the data in one atomic step."""
        self._files.pipe_file(self._of(name), data, chunksize=PART_BYTES)

    def put_file(self, local: Path, name: str, *, move: bool) -> None:
        """Stores a local file: one object is put, or the multipart upload completed, in one atomic step."""
        self._files.put_file(str(local), self._of(name), chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        if move:
            local.unlink(missing_ok=True)

    def move(self, source: str, name: str) -> None:
        """Copies the object inside of the store, then removes it under its old name."""
        try:
            self._files.cp_file(self._of(source), self._of(name))  # ``copy`` looks whether the target is a folder
        except FileNotFoundError:
            self._info(name)  # copied by a first try, which failed right after
        else:
            self._files.rm_file(self._of(source))

    def delete(self, name: str) -> None:
        """Removes the object."""
        self._files.rm_file(self._of(name))

    def delete_tree(self, prefix: str) -> None:
        """Removes the objects of a folder one after another; a repeated call finishes what a crash left."""
        names = list(self.sizes(prefix))
        if names:
            self._files.rm([self._of(name) for name in names])

    def remove_stale_temporaries(self, prefix: str, older_than_seconds: float) -> int:
        """Nothing: an unfinished upload never shows. Let a lifecycle rule of the bucket expire those."""
        return 0

    def free_bytes(self) -> int | None:
        """None: there is no such number."""
        return None

    def _info(self, name: str) -> dict[str, Any]:
        info: dict[str, Any] = self._files.info(self._of(name))
        if info["type"] != "file":
            raise FileNotFoundError(f"{name} is a folder")
        return info

    def _of(self, name: str) -> str:
        return f"{self._address}/{name}"
