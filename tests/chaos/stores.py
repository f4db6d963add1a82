"""Where the jobs of a cluster lie: a disk of its own, or an object store behind a proxy that can fail."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from shared.storage import Storage
from tests.chaos.object_proxy import ObjectProxy
from tests.s3 import BUCKET, moto_server

DISK_MEGABYTES = 512

Change = Callable[[bytearray], None]


class Disk:
    """A folder, which is a small file system of its own where that is possible, so that it can be filled.

    Args:
        folder: to be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {}
        folder.mkdir(parents=True)
        self.can_be_filled = self._mount()
        self.storage = Storage(str(folder / "storage"))

    def _mount(self) -> bool:
        """Only root can."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(self.folder)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def damage(self, name: str, change: Change) -> None:
        """Changes a file where it lies: who has it open sees that, too. No error when it is gone."""
        path = Path(self.storage.root, name)
        try:
            with path.open("r+b") as file:
                content = bytearray(file.read())
                change(content)
                file.seek(0)
                file.write(content)
                file.truncate()
        except FileNotFoundError:
            return

    def unfinished(self) -> list[str]:
        """Files that killed writers left."""
        return [str(path) for path in self.folder.rglob(".tmp-*")]

    def close(self) -> None:
        """Unmounts it."""
        if self.can_be_filled:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Objects:
    """A bucket of a real S3 server. The processes reach it through ``proxy``; ``storage`` does not.

    Args:
        folder: for the server's log and the distillers' cache; to be made.
        seed: of the requests that are struck by a fault that strikes some.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True)
        self._open = ExitStack()
        address = self._open.enter_context(moto_server(folder))
        self.proxy = ObjectProxy(int(address.rpartition(":")[2]), random.Random(seed))
        self._open.callback(self.proxy.close)
        self.storage = Storage(f"s3://{BUCKET}/chaos")
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "DFKD_CACHE_FOLDER": str(folder / "cache"),
            "DFKD_CACHE_BYTES": "1000000",
        }

    def damage(self, name: str, change: Change) -> None:
        """Puts a changed object in the place of one. No error when it is gone."""
        try:
            content = bytearray(self.storage.read_bytes(name))
        except FileNotFoundError:
            return
        change(content)
        self.storage.put_bytes(bytes(content), name)

    def unfinished(self) -> list[str]:
        """Nothing: an upload that was not completed never shows."""
        return []

    def close(self) -> None:
        """Ends server and proxy."""
        self._open.close()
