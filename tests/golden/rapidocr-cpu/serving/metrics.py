"""`GET /metrics`: requests, the model's work and the process, for Prometheus."""

import os
import re
from collections.abc import Callable

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import iter_route_contexts
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import Scope

from serving.worker import Headers, Observer, Worker

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)

PROBES = frozenset({"/health", "/ready", "/metrics"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"  # a method or path of the client's own making, of which there is no end


def method_of(scope: Scope) -> str:
    """Return the request's method; there are only so many."""
    method: str = scope["method"]
    return method if method in METHODS else OTHER


def route_of(scope: Scope) -> str:
    """Return the path of the route that was asked, with its parameters' names; or `other`."""
    if route := scope.get("route"):
        return str(route.path)
    # Refused before it came to a route, or none of FastAPI's.
    path: str = scope["path"]
    paths = (context.path for context in iter_route_contexts(scope["app"].routes))
    return path if path in paths else OTHER


def accept_id(headers: Headers) -> str:
    """Return the request's X-Request-ID where it is fit to be logged, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and re.fullmatch(rb"[!-~]{1,128}", value):
            return str(value, "ascii")
    return os.urandom(16).hex()


class Metrics(Observer):
    """What is counted: by the worker, which it observes, and for each request."""

    def __init__(self, worker: Worker) -> None:
        """Register all series with a registry of their own."""
        disable_created_metrics()  # a second series for each, with the time of its first value
        self._registry = registry = CollectorRegistry()
        self._gauges: list[tuple[Gauge, Callable[[], int]]] = []
        self.in_flight = 0
        labels = ("method", "route", "status")
        self._requests = Counter(
            "http_requests", "Requests that were answered.", labels, registry=registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        # Found by their labels once, for that costs more than to count.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._batches = Histogram(
            "model_batch_size", "Requests in one call.", buckets=REQUESTS, registry=registry
        )
        self._calls = Histogram(
            "model_call_duration_seconds", "Time of one call.", buckets=SECONDS, registry=registry
        )
        self._timeouts = Counter(
            "model_timeouts", "Requests past INFER_TIMEOUT_SECONDS.", registry=registry
        )
        self._restarts = Counter(
            "model_worker_restarts", "Times that a lost worker was replaced.", registry=registry
        )
        self._load = Gauge(
            "model_load_seconds",
            "Time of the load, warm-up included.",
            registry=registry,
        )
        self._show("http_requests_in_flight", "Requests not answered yet.", lambda: self.in_flight)
        self._show("model_queue_depth", "Requests that wait for the model.", lambda: worker.waiting)
        self._show("model_running", "Requests that the model works on.", lambda: worker.running)
        ProcessCollector(registry=registry)
        worker.observer = self

    def collect(self) -> CollectorRegistry:
        """Return what is to be told."""
        self._refresh()
        return self._registry

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        key = method, route, status
        if key not in self._children:
            labels = method, route, str(status)
            self._children[key] = self._requests.labels(*labels), self._durations.labels(*labels)
        requests, durations = self._children[key]
        requests.inc()
        durations.observe(seconds)

    def loaded(self, seconds: float) -> None:
        """Note how long the model took to load."""
        self._load.set(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count one call of the model."""
        self._batches.observe(size)
        self._calls.observe(seconds)

    def timed_out(self) -> None:
        """Count one request that got no answer in time."""
        self._timeouts.inc()

    def restarted(self) -> None:
        """Count one lost worker."""
        self._restarts.inc()

    def refused(self, route: str, status: int, headers: Headers) -> Headers:
        """Count one request that the app has not seen; its answer gets an id as all others."""
        self.requested("POST", route, status, 0.0)
        return [(b"x-request-id", accept_id(headers).encode())]

    def _show(self, name: str, about: str, value: Callable[[], int]) -> None:
        """Add a gauge for what there is of something now."""
        gauge = Gauge(name, about, registry=self._registry)
        self._gauges.append((gauge, value))

    def _refresh(self) -> None:
        for gauge, value in self._gauges:
            gauge.set(value())


def create_router(metrics: Metrics) -> APIRouter:
    """Return the route that Prometheus asks."""
    router = APIRouter()

    # No coroutine: a scrape is written on a thread, while the event loop serves.
    @router.get("/metrics", response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """Report what is counted, in Prometheus' text format."""
        return Response(generate_latest(metrics.collect()), media_type=CONTENT_TYPE_LATEST)

    return router
