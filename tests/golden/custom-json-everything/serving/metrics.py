"""`GET /metrics`: requests, the model's work, the GPUs' memory and the process, for Prometheus."""

import atexit
import os
import re
import shutil
from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from tempfile import mkdtemp

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
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from starlette.types import Scope

from serving.gpu import read_gpus
from serving.threads import WORKERS
from serving.worker import Headers, Observer, Worker

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)

PROBES = frozenset({"/health", "/ready", "/metrics"})
PROBES |= {"/ping"}
PROBES |= {"/readyz"}
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


def share_values() -> None:
    """Have the library keep its values in files, by which the service's processes know all of them.

    To be called before there are any, in the process that the others come from.
    """
    folder, owner = mkdtemp(prefix="metrics-"), os.getpid()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


class Metrics(Observer):
    """What is counted: by the worker, which it observes, and for each request."""

    def __init__(self, worker: Worker) -> None:
        """Register all series with a registry of their own."""
        disable_created_metrics()  # a second series for each, with the time of its first value
        # The process that a model may have to itself counts nothing.
        self._are_shared = WORKERS > 1 and parent_process() is None
        if self._are_shared:
            share_values()
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
            multiprocess_mode="livemostrecent",
        )
        self._show("http_requests_in_flight", "Requests not answered yet.", lambda: self.in_flight)
        self._show("model_queue_depth", "Requests that wait for the model.", lambda: worker.waiting)
        self._show("model_running", "Requests that the model works on.", lambda: worker.running)
        ProcessCollector(registry=registry)
        registry.register(GpuMemory())
        worker.observer = self

    def collect(self) -> CollectorRegistry:
        """Return what is to be told: with several processes the sum of all, whichever is asked."""
        self._refresh()
        if not self._are_shared:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        registry.register(GpuMemory())
        return registry

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        key = method, route, status
        if key not in self._children:
            labels = method, route, str(status)
            self._children[key] = self._requests.labels(*labels), self._durations.labels(*labels)
        requests, durations = self._children[key]
        requests.inc()
        durations.observe(seconds)
        self.ticked()

    def ticked(self) -> None:
        """Tell the other processes what cannot be counted up."""
        if self._are_shared:
            self._refresh()

    def ended(self, process: int) -> None:
        """Forget how many requests were in a process that has ended; what it counted stays."""
        mark_process_dead(process)

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
        gauge = Gauge(name, about, registry=self._registry, multiprocess_mode="livesum")
        self._gauges.append((gauge, value))

    def _refresh(self) -> None:
        for gauge, value in self._gauges:
            gauge.set(value())


class GpuMemory(Collector):
    """The memory of each GPU; nothing where there is no driver to ask."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the driver."""
        found = read_gpus().gpus
        if not found:
            return
        used = GaugeMetricFamily("gpu_memory_used_bytes", "Memory in use.", labels=["gpu"])
        total = GaugeMetricFamily("gpu_memory_total_bytes", "Memory there is.", labels=["gpu"])
        for gpu in found:
            used.add_metric([str(gpu.index)], gpu.memory_used_mb * 2**20)
            total.add_metric([str(gpu.index)], gpu.memory_total_mb * 2**20)
        yield used
        yield total


def create_router(metrics: Metrics) -> APIRouter:
    """Return the route that Prometheus asks."""
    router = APIRouter()

    # No coroutine: a scrape is written on a thread, while the event loop serves.
    @router.get("/metrics", response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """Report what is counted, in Prometheus' text format."""
        return Response(generate_latest(metrics.collect()), media_type=CONTENT_TYPE_LATEST)

    return router
