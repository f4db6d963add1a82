"""A TCP proxy between the processes and the server, so that the network can fail while both ends live."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.conftest import free_port


class Proxy:
    """Forwards connections to a local port until told otherwise. Threads; ``close`` ends them all."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target_port = target_port
        self._open = threading.Event()
        self._open.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.restore()

    def cut(self) -> None:
        """Drops every connection and refuses new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            dropped, self._sockets = self._sockets, set()
        for each in dropped:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def freeze(self) -> None:
        """Keeps connections and lets nothing pass: what is sent arrives when the proxy is restored."""
        self._open.clear()

    def restore(self) -> None:
        """Forwards again."""
        self._open.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def lead_to(self, target_port: int) -> None:
        """From now on forwards to another port; connections to the old one are dropped."""
        self.cut()
        self._target_port = target_port
        self.restore()

    def close(self) -> None:
        """Ends all connections."""
        self._open.set()
        self.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self._open.wait()
                target.sendall(data)
        with self._lock:
            self._sockets -= {source, target}
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
