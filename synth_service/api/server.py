"""The process of the API: serves until SIGTERM or SIGINT."""

import logging
import signal
import socket
import sys
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from shared.logs import configure_logging
from shared.settings import Settings, check_exposure, webhook_key
from synth_service.api.app import create_app
from synth_service.api.security.http_protocol import LimitedHttpProtocol

logger = structlog.get_logger()

GRACE_SECONDS = 5
"""How long running requests may take to end when the service stops."""


class Server(uvicorn.Server):
    """A server that tells its event streams to end, since it would wait for them otherwise."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._ignores_keyboard = signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM, and SIGINT unless whoever started this process has it ignore that, as a shell's ``&``."""
        if sig == signal.SIGINT and self._ignores_keyboard:
            return
        self._app.state.is_stopping = True
        super().handle_exit(sig, frame)


def main() -> int:
    """Serves; 2 when the settings cannot work, said in one line on stderr."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = str(first["loc"][0]).upper().removeprefix("DFKD_")
        name = variable if variable == "REDIS_URL" else f"DFKD_{variable}"
        return _refuse(f"setting {name}: {first['msg'].removeprefix('Value error, ')}")
    if settings.redis_url is None:
        return _refuse(
            "REDIS_URL is not set. Give the address of a Redis or Valkey server, or start all with `dfkd up`."
        )
    configure_logging(settings)
    # It warns of every malformed request: whoever can connect could fill the disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        check_exposure(settings)
        webhook_key(settings)
    except ValueError as error:
        return _refuse(str(error))
    try:
        app = create_app(settings)
    except (ValueError, OSError) as error:
        return _refuse(f"cannot start with REDIS_URL and DFKD_STORAGE as they are: {error}")
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _refuse(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}. "
            "Choose another with DFKD_PORT (0 takes a free one) or DFKD_HOST."
        )
    with listener:
        host, port = listener.getsockname()[:2]
        logger.info("api_listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
        config = uvicorn.Config(
            app,
            http=LimitedHttpProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        Server(config, app).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # `::` is every address of this machine, those of the other kind included.
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)
    # Connections inherit it. Without, a body waits 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _refuse(reason: str) -> int:
    print(f"dfkd api: {reason}", file=sys.stderr)  # noqa: T201 -- the last word of a process that cannot start
    return 2
