"""``GET /metrics``: what operators watch, in the text format of Prometheus.

Two kinds of numbers. Those of the whole service (jobs, queues, workers) come from Redis at the moment of the
scrape, in a fixed number of round trips however many jobs there are; every API process shows the same, so
take ``max`` of them and never ``sum``. Those of this process (requests, memory) are its own; sum them.
No number carries the id of a job: series would never end, and keys that see only their own jobs read this too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

import redis
import structlog
from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.broker import Broker
from shared.broker.statistics import Snapshot
from shared.events import EventType
from shared.jobs import Role, State
from shared.storage import Storage

logger = structlog.get_logger()

LATENCY_BUCKETS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ATTEMPT_OUTCOMES: Final = ("started", "lost", "failed", "released")

router = APIRouter(tags=["service"])


class Metrics:
    """All metrics of one application. Each has its own, so that several may live in one process."""

    def __init__(self, broker: Broker, storage: Storage) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.request_seconds = Histogram(
            "dfkd_http_request_seconds",
            "Time from a request to the head of its answer; bodies, which clients may read for hours, do not count.",
            ["method", "route", "status"],
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.requests_in_progress = Gauge(
            "dfkd_http_requests_in_progress",
            "Requests being answered, event streams and downloads included.",
            registry=self.registry,
        )
        self.registry.register(ServiceCollector(broker, storage))


@router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
def get_metrics(request: Request) -> Response:
    """Numbers for monitoring, in the text format of Prometheus or, where asked for, of OpenMetrics.

    Needs an API key where there are keys, unless the operator opened it with DFKD_PUBLIC_METRICS.
    """
    metrics: Metrics = request.app.state.metrics
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(metrics.registry), headers={"Content-Type": media_type, "Cache-Control": "no-store"})


class RequestMetricsMiddleware:
    """Measures every request: the outermost layer, so that refusals and errors count as clients see them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._histogram = metrics.request_seconds
        self._in_progress = metrics.requests_in_progress
        self._series: dict[tuple[str, str, str], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_and_measure(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(scope, message["status"], time.perf_counter() - started)
            await send(message)

        self._in_progress.inc()
        try:
            await self._app(scope, receive, send_and_measure)
        finally:
            self._in_progress.dec()

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        labels = (method, _route_of(scope), f"{status // 100}xx")
        series = self._series.get(labels)
        if series is None:
            series = self._series.setdefault(labels, self._histogram.labels(*labels))
        series.observe(seconds)


def _route_of(scope: Scope) -> str:
    """The template of the route; one name for all requests that reached none, whatever path they made up."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "none"


class ServiceCollector(Collector):
    """Reads the state of the service when it is asked for."""

    def __init__(self, broker: Broker, storage: Storage) -> None:
        self._broker = broker
        self._storage = storage
        self._version = version("fast-dfkd")

    def collect(self) -> Iterator[Metric]:
        """All families. Without Redis those that need it are absent, which alerts can tell from zero."""
        yield InfoMetricFamily("dfkd_build", "Version of the API.", {"version": self._version})
        try:
            snapshot = self._broker.statistics.snapshot()
            memory = self._broker.statistics.memory()
        except redis.RedisError as error:
            logger.warning("metrics_incomplete", error=str(error))
            yield _gauge("redis_up", "Whether Redis answers.", 0)
        else:
            yield _gauge("redis_up", "Whether Redis answers.", 1)
            yield _gauge("redis_memory_bytes", "Memory that the Redis server uses for data.", memory[0])
            yield _gauge("redis_memory_limit_bytes", "Most memory that it may use; 0 is no limit.", memory[1])
            yield from _jobs(snapshot)
            yield from _queues(snapshot)
            yield from _work(snapshot)
            yield from _workers(snapshot)
        yield from self._free_space()

    def _free_space(self) -> Iterator[Metric]:
        try:
            free = self._storage.free_bytes()
        except OSError as error:
            logger.warning("metrics_incomplete", error=str(error))
            return
        if free is not None:
            yield _gauge("storage_free_bytes", "Bytes that may still be written; absent on object storage.", free)


def _jobs(snapshot: Snapshot) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("dfkd_jobs", "Jobs that exist, by state.", labels=["state"])
    for state, count in snapshot.jobs.items():
        jobs.add_metric([state], count)
    yield jobs
    events = snapshot.events
    yield _counter("jobs_created", "Jobs created.", events.get((EventType.JOB_CREATED, ""), 0))
    yield _counter("jobs_retried", "Ended jobs that were sent on.", events.get((EventType.JOB_RETRIED, ""), 0))
    finished = CounterMetricFamily("dfkd_jobs_finished", "Jobs that ended, by final state.", labels=["state"])
    for state in State:
        if state.is_final:
            finished.add_metric([state], events.get((f"job_{state}", ""), 0))
    yield finished
    webhooks = CounterMetricFamily(
        "dfkd_webhooks", "Ends of jobs that an address was to be told of, by what came of it.", labels=["outcome"]
    )
    webhooks.add_metric(["delivered"], events.get((EventType.WEBHOOK_DELIVERED, ""), 0))
    webhooks.add_metric(["failed"], events.get((EventType.WEBHOOK_FAILED, ""), 0))
    yield webhooks
    newest = GaugeMetricFamily(
        "dfkd_newest_evaluation",
        "The last measurement of a student on labeled images, whichever job's: fractions, by the task's metrics.",
        labels=["metric"],
    )
    if snapshot.newest_measurement is not None:
        for name, value in snapshot.newest_measurement.metrics.items():
            newest.add_metric([name], value)
    yield newest
    poor = events.get((EventType.QUALITY_POOR, Role.DISTILLATION), 0)
    yield _counter("jobs_poor", "Times that images or a student turned out to be poor, judged without labels.", poor)


def _queues(snapshot: Snapshot) -> Iterator[Metric]:
    tasks = GaugeMetricFamily("dfkd_queue_tasks", "Tasks that wait or are being worked on.", labels=["role"])
    waiting = GaugeMetricFamily("dfkd_queue_waiting_tasks", "Tasks that no worker has.", labels=["role"])
    age = GaugeMetricFamily("dfkd_queue_age_seconds", "Age of the oldest task that has not ended.", labels=["role"])
    waiting_age = GaugeMetricFamily(
        "dfkd_queue_waiting_age_seconds", "Age of the oldest task that no worker has.", labels=["role"]
    )
    for role, queue in snapshot.queues.items():
        tasks.add_metric([role], queue.tasks)
        waiting.add_metric([role], queue.waiting)
        age.add_metric([role], queue.oldest_seconds)
        waiting_age.add_metric([role], queue.oldest_waiting_seconds)
    yield from (tasks, waiting, age, waiting_age)


def _work(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("shard_lag", "Shards announced and not yet consumed, of all jobs.", snapshot.shard_lag)
    yield _gauge("shard_lag_greatest", "The same of the job that has most.", snapshot.greatest_shard_lag)
    events = snapshot.events
    yield _counter("images", "Synthetic images in announced shards.", snapshot.images)
    yield _counter("shards", "Shards announced.", events.get((EventType.SHARD_SEALED, Role.SYNTHESIS), 0))
    yield _counter("shard_bytes", "Bytes of announced shards.", snapshot.shard_bytes)
    yield _counter(
        "shards_damaged", "Shards that were found damaged.", events.get((EventType.SHARD_DAMAGED, Role.SYNTHESIS), 0)
    )
    yield _counter("distillation_steps", "Distillation steps made.", snapshot.distillation_steps)
    attempts = CounterMetricFamily(
        "dfkd_attempts",
        "Turns of workers at tasks: started, and how those that did not finish ended.",
        labels=["role", "event"],
    )
    full = CounterMetricFamily("dfkd_storage_full", "Times that work met a full storage.", labels=["role"])
    for role in Role:
        for outcome in ATTEMPT_OUTCOMES:
            attempts.add_metric([role, outcome], events.get((f"attempt_{outcome}", role), 0))
        full.add_metric([role], events.get((EventType.STORAGE_FULL, role), 0))
    yield from (attempts, full)


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    workers = GaugeMetricFamily("dfkd_workers", "Workers heard of within a minute.", labels=["role", "state"])
    for role in Role:
        of_role = [worker for worker in snapshot.workers if worker.role == role]
        busy = sum(bool(worker.job) for worker in of_role)
        workers.add_metric([role, "busy"], busy)
        workers.add_metric([role, "idle"], len(of_role) - busy)
    heartbeat = GaugeMetricFamily(
        "dfkd_worker_heartbeat_age_seconds", "Time since a worker was last heard of.", labels=["role", "worker"]
    )
    for worker in snapshot.workers:
        heartbeat.add_metric([worker.role, worker.name], worker.heartbeat_age_seconds)
    yield from (workers, heartbeat)


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dfkd_{name}", description, value)


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(f"dfkd_{name}", description, value)
