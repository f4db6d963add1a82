"""The application: routers, error handlers and what they share, put together for one set of settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import redis
import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI

from shared.broker import Broker
from shared.settings import Settings, webhook_key
from shared.storage import Storage
from shared.storage.identity import StorageIdentity
from synth_service.api import dashboard
from synth_service.api.dashboard.problem_pages import ProblemPageMiddleware
from synth_service.api.examples import add_examples
from synth_service.api.head_requests import HeadMiddleware
from synth_service.api.problems import ProblemMiddleware, describe_in_openapi, install_handlers
from synth_service.api.readiness import Readiness
from synth_service.api.request_logs import RequestLogMiddleware
from synth_service.api.routes import (
    archive,
    consumption,
    events,
    jobs,
    keys,
    metrics,
    metrics_page,
    models,
    outputs,
    previews,
    service,
    validation,
)
from synth_service.api.routes.metrics_page import Metrics, RequestMetricsMiddleware
from synth_service.api.security.access import Keyring
from synth_service.api.security.audit import AuditMiddleware
from synth_service.api.security.auth import (
    WRONG_KEYS_PER_SECOND,
    AuthenticationMiddleware,
    describe_security,
)
from synth_service.api.security.headers import OriginMiddleware, SecurityHeadersMiddleware
from synth_service.api.security.rate_limits import RateLimiter, RateLimitMiddleware
from synth_service.api.security.sessions import Sessions
from synth_service.api.webhooks import sending_webhooks

logger = structlog.get_logger()

REDIS_TIMEOUT_SECONDS = 2.0
REDIS_RETRIES = 1
"""A client hears 503 within seconds and can decide itself how long to go on trying."""


class Api(FastAPI):
    """FastAPI whose OpenAPI document shows errors as what they are: problem+json."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = describe_security(describe_in_openapi(super().openapi()), self.state.settings)
            self.openapi_schema = add_examples(document)
        return self.openapi_schema


def _compare_storage(app: FastAPI) -> None:
    """Learns which storage is the right one. What hinders that now, ``/readyz`` tells and tries again."""
    try:
        app.state.storage_identity.compare(adopts=True)
    except (redis.RedisError, OSError) as error:
        logger.warning("storage_not_confirmed", error=str(error))


def create_app(settings: Settings) -> FastAPI:
    """The API over the Redis and the storage of the settings. Connects to neither yet.

    Raises:
        ValueError: no ``redis_url``, or it or ``storage`` is malformed, or ``webhook_hosts`` without a secret.
        OSError: the storage folder cannot be made.
    """
    if settings.redis_url is None:
        raise ValueError("redis_url is not set")
    webhook_key(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_sync(_compare_storage, app)
        async with sending_webhooks(app.state.broker, settings):
            yield
        app.state.broker.close()

    # The documentation pages of FastAPI load scripts from a foreign server; /openapi.json serves any local viewer.
    app = Api(title="Fast-DFKD", version=version("fast-dfkd"), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.settings = settings
    app.state.broker = Broker(
        settings.redis_url,
        lease_seconds=settings.lease_seconds,
        retries=REDIS_RETRIES,
        timeout_seconds=REDIS_TIMEOUT_SECONDS,
    )
    app.state.storage = Storage(settings.storage)
    app.state.storage_identity = StorageIdentity(app.state.storage, app.state.broker.storage_record)
    app.state.readiness = Readiness(app.state.broker, app.state.storage, app.state.storage_identity)
    app.state.inspections = CapacityLimiter(1)
    app.state.is_stopping = False
    app.state.keyring = Keyring(settings.api_keys, app.state.broker.access)
    app.state.sessions = Sessions(app.state.keyring, settings.session_hours, app.state.broker.session_secret)
    app.state.wrong_keys = RateLimiter(WRONG_KEYS_PER_SECOND, settings.max_wrong_keys)
    app.state.metrics = Metrics(app.state.broker, app.state.storage)
    # From the innermost to the outermost.
    app.add_middleware(AuditMiddleware)
    app.add_middleware(RateLimitMiddleware, settings.max_requests_per_second)
    app.add_middleware(AuthenticationMiddleware, settings, app.state.keyring, app.state.sessions, app.state.wrong_keys)
    app.add_middleware(OriginMiddleware, settings.allowed_hosts, bool(settings.api_keys))
    app.add_middleware(ProblemMiddleware)
    app.add_middleware(ProblemPageMiddleware)
    app.add_middleware(HeadMiddleware)  # around what makes a page of a problem, which it reads
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestMetricsMiddleware, app.state.metrics)
    app.add_middleware(RequestLogMiddleware, settings.log_level == "debug")
    install_handlers(app)
    for part in (
        jobs,
        validation,
        events,
        metrics,
        outputs,
        previews,
        archive,
        consumption,
        models,
        keys,
        service,
        metrics_page,
        dashboard,
    ):
        app.include_router(part.router)
    return app
