"""A TCP proxy that cuts connections in the middle of what the server says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class CuttingProxy:
    """Passes so many bytes of each answer and then cuts; when the list is used up it passes everything."""

    def __init__(self, target: str, cut_after_bytes: list[int]) -> None:
        self._target = (urlsplit(target).hostname or "", urlsplit(target).port or 0)
        self._left = list(cut_after_bytes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.cuts = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            budget = self._left.pop(0) if self._left else None
            self._start(self._ask, client, server)
            self._start(self._answer, server, client, budget)

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket, budget: int | None) -> None:
        with suppress(OSError), server, client:
            while data := server.recv(65_536):
                if budget is not None and len(data) >= budget:
                    client.sendall(data[:budget])
                    self.cuts += 1
                    break
                client.sendall(data)
                budget = None if budget is None else budget - len(data)
            # Both directions at once, so that the thread that reads from the client ends too.
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(target: str, cut_after_bytes: list[int]) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(target, cut_after_bytes)
    try:
        yield proxy
    finally:
        proxy.close()
